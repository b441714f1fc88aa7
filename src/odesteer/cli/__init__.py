"""The command line: parses, calls the library, prints."""

from odesteer.cli.app import main

__all__ = ["main"]
