"""Steerings: what acts on an activation, composed, saved, described and compared."""
