"""Coverage-guided fuzzing of one reader, by hand.

    pip install atheris                                    # Linux, Python 3.11 to 3.13
    PYTHONPATH=src python -m tests.fuzz gguf -max_total_time=300

The name is one of `READERS`; what follows are libFuzzer's options. An input that breaks the reader
is written to crash-*; put what it shows into `tests/common/test_bounded_readers.py`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["odesteer", "safetensors", "gzip", "csv", "json"]):
    from tests.fuzz.readers import READERS, check

name, *options = sys.argv[1:]
corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}-"))
for number, seed in enumerate(READERS[name][1]):
    (corpus / str(number)).write_bytes(seed)
atheris.Setup([sys.argv[0], str(corpus), *options], lambda data: check(name, data) and None)
atheris.Fuzz()
