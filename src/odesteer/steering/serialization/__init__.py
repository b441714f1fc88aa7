"""Serialization of steerings: JSON and safetensors, never code."""
