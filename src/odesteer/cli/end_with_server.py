"""Watcher of a served model: ends what a killed server leaves behind.

`odesteer serve` starts it as a script, `python end_with_server.py PID VARIABLE TOKEN`, and becomes
vLLM's server. An engine whose server is killed waits for it for minutes while it starts, and for
ever later, with the memory of its model. Every process of a server has `VARIABLE=TOKEN` in its
environment.
"""

import os
import signal
import sys
import time

import psutil


def started_with(variable: str, token: str) -> list[psutil.Process]:
    """Return the processes of a server, but for those that end by themselves.

    Python's resource tracker ends after the others, and unlinks the memory that they shared.
    """
    # What is gone, a zombie or another user's has None for its environment.
    return [
        process
        for process in psutil.process_iter(["environ", "cmdline"])
        if (process.info["environ"] or {}).get(variable) == token
        and "multiprocessing.resource_tracker" not in " ".join(process.info["cmdline"] or ())
    ]


def main(server: int, variable: str, token: str) -> None:
    """Wait for the end of the server, which started this process, then kill the others."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # meant for the server: this ends after it
    while os.getppid() == server:
        time.sleep(0.5)
    # Twice, for a process that was being started in between.
    for _ in range(2):
        while processes := started_with(variable, token):
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=5)
        time.sleep(0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
