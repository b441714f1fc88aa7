"""A claim is held by one process, and taken over from one that is gone."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odesteer.common.jobs.lock import Claim, remove_given_up


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


def elsewhere(path: Path) -> Claim:
    """A claim of another host, as its holder sees it."""
    claim = Claim.take(path)
    assert claim is not None
    about = {**json.loads(path.read_text()), "host": "elsewhere"}
    path.write_text(json.dumps(about))
    return claim


def test_a_clock_that_was_set_back_does_not_keep_a_claim_for_ever(tmp_path: Path) -> None:
    elsewhere(tmp_path / "claim")
    os.utime(tmp_path / "claim", (time.time() + 86400,) * 2)
    assert Claim.take(tmp_path / "claim") is not None


def test_a_clock_that_is_ahead_takes_no_claim_of_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path / "claim")
    ahead = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert Claim.take(tmp_path / "claim") is None


def test_a_claim_that_was_taken_over_is_not_given_back_by_who_lost_it(tmp_path: Path) -> None:
    lost = Claim.take(tmp_path / "claim")
    assert lost is not None
    about = {**json.loads((tmp_path / "claim").read_text()), "pid": os.getppid()}
    (tmp_path / "claim").write_text(json.dumps(about))
    lost.__exit__(None, None, None)
    assert (tmp_path / "claim").exists()


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, mode: str) -> None:
        os.close(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space"):
        Claim.take(tmp_path / "claim")
    assert not list(tmp_path.iterdir())


def test_claims_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    mine = Claim.take(tmp_path / "7")
    assert mine is not None
    about = json.loads((tmp_path / "7").read_text())
    (tmp_path / "8").write_text(json.dumps({**about, "started": "1"}))
    remove_given_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
