"""The progress bar of a recording: the terminal's last line, set apart from what the program prints. # S3.3

The program's output scrolls in the lines above, whoever writes it, so the two never mix; nothing of the program's streams
is replaced. Nothing is shown where stderr is no terminal.
Room: tracer. May touch: the terminal behind stderr (its scrolling region, given back at the end).
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

_SAVE, _RESTORE = "\0337", "\0338"
_LEAST_ROWS = 5
_WIDTH = 30


class TerminalBar:
    """One line at the bottom of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        """`stream` is a terminal."""
        self._stream = stream
        self._rows = 0

    def show(self, facts: dict[str, Any]) -> None:
        """Draw the fields of `tracer.progress.FIELDS`."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
            if rows < _LEAST_ROWS:
                return
            if rows != self._rows:
                self._reserve(rows)
            self._write(f"{_SAVE}\033[{rows};1H\033[K{line(facts, columns)}{_RESTORE}")
        except (OSError, ValueError):
            return  # The terminal went away; the run goes on.

    def _reserve(self, rows: int) -> None:
        self._rows = rows
        self._write(f"\n{_SAVE}\033[1;{rows - 1}r{_RESTORE}\033[1A")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        """Give the line back."""
        if self._rows:
            try:
                self._write(f"{_SAVE}\033[r\033[{self._rows};1H\033[K{_RESTORE}")
            except (OSError, ValueError):
                return
            finally:
                self._rows = 0


def line(facts: dict[str, Any], columns: int) -> str:
    """Return the bar and its figures in at most `columns` columns; without a total there is no bar."""
    step, total = facts["current_step"], facts["total_steps"]
    words = [str(facts["status"]), f"step {step}" if total is None else f"step {step}/{total}"]
    if facts["loss"] is not None:
        words.append(f"loss {facts['loss']:.5g}")
    if facts["steps_per_second"]:
        words.append(f"{facts['steps_per_second']:.3g}/s")
    if facts["eta_seconds"] is not None:
        words.append(f"ETA {int(facts['eta_seconds']) // 60}:{int(facts['eta_seconds']) % 60:02}")
    text = " ".join(words)
    if not total or columns < len(text) + _WIDTH + 2:
        return text[: columns - 1]
    return f"{_bar(step or 0, total)} {text}"


def _bar(done: int, total: int) -> str:
    from rich.console import Console  # noqa: PLC0415  only where somebody looks
    from rich.progress_bar import ProgressBar  # noqa: PLC0415  as above

    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None, force_terminal=True, legacy_windows=False).print(
        ProgressBar(total=total, completed=min(done, total), width=_WIDTH), end=""
    )
    return out.getvalue().strip().ljust(_WIDTH, "╌")


def for_this_process() -> TerminalBar | None:
    """Return a bar where stderr is a terminal that can have one, else None."""
    known = os.environ.get("TERM", "dumb") != "dumb"
    return TerminalBar(sys.stderr) if known and sys.stderr is not None and sys.stderr.isatty() else None
