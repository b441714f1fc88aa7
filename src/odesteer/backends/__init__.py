"""Backends: engines that run a language model, steered or not."""

from odesteer.backends.base import Backend, Sampling
from odesteer.backends.transformers import TransformersBackend

__all__ = ["Backend", "Sampling", "TransformersBackend"]
