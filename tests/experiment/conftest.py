"""The small benchmarks on disk, which the tests of benchmarks have, too."""

from tests.benchmarks.conftest import local  # noqa: F401
