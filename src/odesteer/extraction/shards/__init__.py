"""Sharded extraction of activations from large data sets."""

from odesteer.extraction.shards.dataset import Shard, Shards
from odesteer.extraction.shards.worker import extract_shards

__all__ = ["Shard", "Shards", "extract_shards"]
