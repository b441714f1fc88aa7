"""Conformance suite for steering libraries: `pytest --pyargs odesteer.testing.suite`."""
