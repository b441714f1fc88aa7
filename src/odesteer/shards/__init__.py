"""How are the activations of very many texts extracted, kept and read?"""

from odesteer.shards.extract import extract_shards
from odesteer.shards.reading import Shard, Shards

__all__ = ["Shard", "Shards", "extract_shards"]
