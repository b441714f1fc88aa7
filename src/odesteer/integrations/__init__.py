"""Integrations with other programs and file formats."""
