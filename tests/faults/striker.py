"""Run commands of medlt in forked processes, and strike them: kill them, or fill the disk, at a change of a file.

It imports medlt once, reads one JSON list of jobs per line from stdin, runs the jobs of a line at the same time, and
answers with one JSON list. A job: args, cwd, log (file for stdout and stderr), root (the folder whose changes count),
and perhaps a strike. An answer: code, and changes, [event, name below root] of every change that was begun, in order.

A strike {"how": "kill", "event", "name", "later"} kills the process group when `later` changes (0: none) have passed
since the first event of this kind on a name of this form; {"how": "full", "event", "name"} lets that event and
everything that needs space afterwards fail with ENOSPC; {"how": "small", "bytes"} lets the system refuse longer files.
The processes that a command starts are watched and struck too: workers/sitecustomize.py runs when they start.
"""

import json
import os
import re
import resource
import signal
import sys
import traceback
from errno import ENOSPC
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("medlt.cli", "medlt.api", "medlt.data.convert", "medlt.evaluation.conclude", "medlt.export.release"),
    *(f"medlt.recipes.{name}" for name in ("audit", "augment", "evaluate", "run", "train")),
)
"""What the commands import, so that none has to."""
WORKERS = str(Path(__file__).with_name("workers"))
GROWS = {"open", "os.mkdir", "os.link"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changed(event: str, args: tuple[Any, ...]) -> str | None:
    """The path that an audit event is about to change; None for any other event."""
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        writes = isinstance(args[2], int) and args[2] & WRITES
        return os.fsdecode(args[0]) if writes else None
    if event in ("os.remove", "os.rmdir", "os.truncate"):
        folder = args[1] if event != "os.truncate" and args[1] >= 0 else None  # shutil.rmtree gives names below it
        home = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        return os.path.join(home, os.fsdecode(args[0]))
    if event == "os.mkdir":
        return os.fsdecode(args[0])
    if event in ("os.rename", "os.link"):
        return os.fsdecode(args[1])
    return None


def watch(job: dict[str, Any]) -> None:
    """Write each change below `root` to LOG.changes, and strike at the one that the job names."""
    root, strike = os.path.join(os.path.abspath(job["root"]), ""), job.get("strike") or {}
    how, reached, past = strike.get("how"), False, 0
    seen = os.open(job["log"] + ".changes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    no_space = job["log"] + ".full"  # a file, which all processes of the command see

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal reached, past
        path = changed(event, args)
        if path is None or not (path := os.path.abspath(path)).startswith(root):
            return
        name = path.removeprefix(root)
        if how != "small":  # which limits this file too
            os.write(seen, (json.dumps([event, name]) + "\n").encode())
        past += reached
        hit = not reached and event == strike.get("event") and bool(re.fullmatch(strike["name"], name))
        reached = reached or hit
        if how == "kill" and reached and past == strike["later"]:
            os.killpg(0, signal.SIGKILL)
        if how == "full" and (hit or (event in GROWS and os.path.exists(no_space))):
            os.close(os.open(no_space, os.O_WRONLY | os.O_CREAT))
            raise OSError(ENOSPC, os.strerror(ENOSPC), path)

    if how == "small":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (strike["bytes"], strike["bytes"]))
    sys.addaudithook(hook)


def begin(job: dict[str, Any]) -> int:
    """Start a job in a session of its own; return its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setsid()
    code = 1
    try:
        os.chdir(job["cwd"])
        out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["medlt", *job["args"]]
        os.environ["PYTHONPATH"] = os.pathsep.join([WORKERS, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["MEDLT_STRIKE"] = json.dumps(job)
        from medlt.cli import app

        watch(job)
        app(job["args"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer every line of stdin."""
    for name in LIBRARIES:
        import_module(name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        jobs = json.loads(line)
        for job, end in product(jobs, (".changes", ".full")):
            Path(job["log"] + end).unlink(missing_ok=True)
        started = [begin(job) for job in jobs]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
        lines = [Path(job["log"] + ".changes").read_text().splitlines() for job in jobs]
        answers = [
            {"code": code, "changes": [json.loads(one) for one in changes]}
            for code, changes in zip(codes, lines, strict=True)
        ]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
