"""Models: loading, decoder blocks, chat templates, hooks and caches."""

from odesteer.models.loading import load_model

__all__ = ["load_model"]
