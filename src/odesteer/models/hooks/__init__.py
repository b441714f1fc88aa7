"""Hooks that steer a transformers model, and the tracking of its tokens."""
