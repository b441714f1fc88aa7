"""A claim is held by one process, and taken over from one that is gone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from odesteer.work.claims import Claim


def test_a_claim_is_held_by_one_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with Claim.take(path) as mine:  # type: ignore[union-attr]
        assert mine is not None
        assert Claim.take(path) is None
        about = json.loads(path.read_text())
        assert about["pid"] == os.getpid()
    assert not path.exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for gone in ({**about, "pid": ended.pid}, {**about, "started": "1"}):
        path.write_text(json.dumps(gone))
        taken = Claim.take(path)
        assert taken is not None
        taken.__exit__(None, None, None)
    # Of another host, only what nobody has touched for long.
    path.write_text(json.dumps({**about, "host": "elsewhere"}))
    assert Claim.take(path) is None
    os.utime(path, (time.time() - 3600,) * 2)
    assert Claim.take(path) is not None
