"""On-disk cache of activations."""
