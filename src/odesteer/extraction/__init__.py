"""Extraction: texts to activations, batched, pooled, cached and sharded."""
