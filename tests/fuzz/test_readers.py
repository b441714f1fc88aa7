"""Whatever is in a file, its reader reads it or refuses it in one line; see `tests/fuzz`."""

import os
import random
import resource
import sys

import pytest
from tests.fuzz.readers import READERS, check, mutated

MEGABYTES = 200
# More by hand: ODESTEER_MUTATIONS=5000 python -m pytest tests/fuzz
MUTATIONS = int(os.environ.get("ODESTEER_MUTATIONS", "300"))


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name):
    seeds = READERS[name][1]
    if not seeds:
        pytest.skip("needs pyarrow")
    assert all(check(name, seed) for seed in seeds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(name)
    accepted = 0
    for number in range(MUTATIONS):
        data = mutated(rng, rng.choice(seeds), seeds)
        try:
            accepted += check(name, data)
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {error!r} of {data[:2000]!r}") from error
    print(f"{name}: {MUTATIONS} tried, {accepted} read")
    # The header of a damaged file in the cache is empty.
    assert accepted < MUTATIONS or name == "cache"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sys.platform != "linux" or grown < 1024 * MEGABYTES
