"""A claim is held by one process, and released with it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from odesteer.common.jobs import Claim, remove_abandoned_claims

HOLD = """
import sys, time
from pathlib import Path
from odesteer.common.jobs import Claim
claim = Claim.take(Path(sys.argv[1]))
print(claim is not None, flush=True)
time.sleep(600)
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    """Start another process that holds a claim."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    return process


def test_a_claim_is_held_by_one_and_gone_when_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    for _ in range(2):
        claim = Claim.take(path)
        assert claim is not None
        with claim:
            assert Claim.take(path) is None
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), Claim.take(path):  # type: ignore[union-attr]
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_paused_process_keeps_its_claim_and_a_killed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    process = hold(path)
    try:
        assert Claim.take(path) is None
        process.send_signal(signal.SIGSTOP)
        assert Claim.take(path) is None
    finally:
        process.kill()
        process.wait()
    assert path.exists()
    claim = Claim.take(path)
    assert claim is not None
    claim.release()


def test_threads_never_hold_one_claim_at_once(tmp_path: Path) -> None:
    path, holders, most, taken = tmp_path / "claim", set(), [], []

    def work(name: int) -> None:
        while len(taken) < 200:
            claim = Claim.take(path)
            if claim is not None:
                with claim:
                    holders.add(name)
                    most.append(len(holders))
                    holders.remove(name)
                    taken.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_claims_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    mine = Claim.take(tmp_path / "7")
    assert mine is not None
    process = hold(tmp_path / "8")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "9").write_text('{"pid": 1}')  # of version 0.1.0
    remove_abandoned_claims(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    mine.release()
