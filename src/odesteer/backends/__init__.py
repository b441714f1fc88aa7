"""Backends: engines that run a language model, steered or not."""

from odesteer.backends.base import Backend
from odesteer.backends.transformers import TransformersBackend
from odesteer.models.generation import Sampling

__all__ = ["Backend", "Sampling", "TransformersBackend"]
