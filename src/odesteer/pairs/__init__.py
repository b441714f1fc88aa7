"""Contrasts that a language model writes: answers under two opposite instructions."""

from odesteer.pairs.traits import Trait
from odesteer.pairs.write import WrittenPairs, write_pairs

__all__ = ["Trait", "WrittenPairs", "write_pairs"]
