"""Assignment of texts to shards.

Shard k of K has the positives from n k / K to n (k + 1) / K and the negatives from m k / K to
m (k + 1) / K. So both classes are in every shard, in the contrast's order; texts with one prompt,
which begin alike, are in the same shard where rows of both classes belong together; and nothing
depends on who computes, which is why it never changes what is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ROWS = 2048  # texts a shard: 19 MB a layer of 2304 numbers, minutes of work on a CPU


@dataclass(frozen=True)
class ShardPlan:
    """What is in a shard.

    Attributes:
        number: its place among all shards.
        positive: places of its positive texts in the contrast.
        negative: places of its negative texts.
    """

    number: int
    positive: range
    negative: range

    @property
    def weight(self) -> int:
        """How many texts."""
        return len(self.positive) + len(self.negative)

    @property
    def needs(self) -> Sequence[int]:
        return ()

    @property
    def fold(self) -> int:
        return self.number

    @property
    def keeps(self) -> bool:
        return False


def parts(n: int, m: int, rows_per_shard: int) -> tuple[ShardPlan, ...]:
    """The shards of n positive and m negative texts.

    Args:
        n, m: at least 1 each.
        rows_per_shard: about how many texts a shard has at most; more where a class has fewer
            texts than there would be shards.

    Raises:
        ValueError: for fewer than 2 rows, one of each class.
    """
    if rows_per_shard < 2:
        raise ValueError(
            f"A shard has at least one positive and one negative text; got {rows_per_shard} rows "
            f"per shard."
        )
    count = min(-(-(n + m) // rows_per_shard), n, m)

    def cut(size: int, k: int) -> range:
        return range(size * k // count, size * (k + 1) // count)

    return tuple(ShardPlan(k, cut(n, k), cut(m, k)) for k in range(count))
