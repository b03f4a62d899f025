"""Records programs with `rewind record`, each in a process forked from this one, which has loaded what takes seconds to load.

A line of stdin is a job, [folder, output, arguments of `rewind`]: it is run in FOLDER, what it prints goes to the files
OUTPUT.stdout and OUTPUT.stderr, and its exit code to stdout when it is done. No operation of torch has run before the
fork, and Python's and NumPy's generators are seeded anew in it, as in a process that was started by hand.
"""

from __future__ import annotations

import json
import os
import random
import sys

import numpy as np
import torch._dynamo  # noqa: F401  as replay.nursery

from apps import cli


def main() -> None:
    """Do the jobs of stdin, one after the other; a child returns with its exit code."""
    for line in sys.stdin:
        folder, output, arguments = json.loads(line)
        child = os.fork()
        if not child:
            sys.exit(record(folder, output, arguments))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def record(folder: str, output: str, arguments: list[str]) -> int:
    """Run the command line there; return its exit code."""
    os.chdir(folder)
    for number, (name, flags) in enumerate(((os.devnull, os.O_RDONLY), *_written(output))):
        os.dup2(os.open(name, flags, 0o600), number)
    random.seed()
    np.random.seed()
    sys.argv = ["rewind", *arguments]
    return cli.run(arguments)


def _written(output: str) -> list[tuple[str, int]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return [(f"{output}.stdout", flags), (f"{output}.stderr", flags)]


if __name__ == "__main__":
    main()
