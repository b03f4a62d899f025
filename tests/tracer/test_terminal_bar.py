from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

from tests.tracer.live_run import ENVIRONMENT, PROGRAM
from tracer.progress import FIELDS
from tracer.terminal_bar import TerminalBar, line

FACTS = dict.fromkeys(FIELDS) | {"status": "running", "current_step": 50, "total_steps": 100, "loss": float("nan")}


def test_line_fits():
    assert line(FACTS, 200).endswith("running step 50/100 loss nan")
    assert len(line(FACTS, 200)) == 30 + 1 + len("running step 50/100 loss nan")
    assert len(line(FACTS, 20)) <= 20
    assert line(dict.fromkeys(FIELDS) | {"status": "running", "current_step": 3}, 80) == "running step 3"


def test_no_terminal_no_harm():
    bar = TerminalBar(io.StringIO())
    bar.show(FACTS)
    bar.close()


def test_bar_on_a_terminal_never_mixes_with_output(tmp_path):  # S3.3
    (tmp_path / "train.py").write_text(PROGRAM)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "apps.cli", "record", "--out", "t", "train.py", "loader", "2", "50"]
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the terminal of a process that is gone
            pass
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    assert len(out.split()) == 1, "stdout has the digest and nothing else"
    assert b"\x1b[1;23r" in shown, "the last line was set apart"
    assert b"running step" in shown
    assert b"step 1/100" in shown
    assert shown.rindex(b"\x1b[r") > shown.rindex(b"step "), "and given back at the end"
