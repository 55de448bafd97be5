"""A process that has imported robustcore, and forks runs of the command from it.

    python forks.py < jobs

A job is a line of JSON: ``argv``; ``folder`` to run it in; ``ranks``, how many processes, as
torchrun starts them (0: one, without its variables); ``port`` for them; ``kill``: [rank, seconds],
a SIGKILL, ``seconds`` after the table ``out`` has ``rows``; ``most_bytes``: the size beyond which
no file grows. The answer is a line: the exit codes, negative for signals. Imports take seconds and
runs milliseconds, so this is how a run is killed twenty times.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import scipy.special  # noqa: F401  (as the next two: a run would import them, at its first need)
import torch
import torch.distributed
import tqdm.auto  # noqa: F401

from robustcore.command.main import main

# A file that may not grow further is written short without an error, and a user's module would be
# read back from such a cache.
sys.dont_write_bytecode = True


def run(job, rank):
    os.chdir(job["folder"])
    if job["ranks"]:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"]}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
        os.environ.update({name: str(value) for name, value in names.items()})
    log = os.open(f"log{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], job["most_bytes"]))
    try:
        code = main(job["argv"])
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    return code


def wait(pid, seconds):
    """The exit code; a process that does not end by itself is ended, and gives -99."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -99


def wait_for_rows(table, rows, seconds):
    end = time.monotonic() + seconds
    while rows and time.monotonic() < end:
        if table.exists() and table.read_text().count("\n") > rows:
            return
        time.sleep(0.002)


def execute(job):
    pids = []
    for rank in range(max(1, job["ranks"])):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(job, rank)
            finally:
                os._exit(code)
        pids.append(pid)
    if job["kill"]:
        rank, seconds = job["kill"]
        wait_for_rows(Path(job["folder"], job["out"]), job["rows"], 60)
        time.sleep(seconds)
        os.kill(pids[rank], signal.SIGKILL)
    return [wait(pid, 300) for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    for line in sys.stdin:
        print(json.dumps(execute(json.loads(line))), flush=True)
