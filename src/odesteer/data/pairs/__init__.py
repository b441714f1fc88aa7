"""Contrasts that a language model writes: answers under two opposite instructions."""

from odesteer.data.pairs.traits import Trait
from odesteer.data.pairs.write import WrittenPairs, write_pairs

__all__ = ["Trait", "WrittenPairs", "write_pairs"]
