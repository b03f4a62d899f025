"""Environment variables that the recorded program, or a library of it, looked up: kept, and given again to its replay.

Kept are the variables as they were when the recording began, if they were looked up before the program set them itself; of
one whose name or value looks like a secret only that it was set. What is true of the shell and not of the run (PATH, HOME ...)
is left out. On the disk: files/<session>.environment.json, which only its owner can read, with a sum and the user's mark
(`tracer.origin`): what others have changed is not given to a program of one's own.
Room: tracer. May touch: `os.environ`'s class while a recording watches it; the file it is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tracer import frames, origin, shell
from tracer.segments import proven, with_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

_OF_THE_SHELL = frozenset(
    (
        *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "TEMP", "TMP", "PWD", "OLDPWD"),
        *("TERM", "COLUMNS", "LINES", "SHLVL", "_"),
    )
)
_OURS = ("REWIND_", "PYTEST_")
_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|PRIVATE|SIGNATURE|CERT|DSN|LICENSE|(^|_)(PAT|PWD|SAS)(_|$)"
)
_NO_SECRETS = frozenset(("TOKENIZERS_PARALLELISM", "TORCH_SERIALIZATION_SKIP_CRC32_KEY"))
_SECRET_VALUE = re.compile(
    r"://[^/\s]*@|-----BEGIN|(token|key|secret|passw\w*|sig|signature|auth)=|\b(gh[a-z]_|github_pat_|sk-|hf_|xox|AKIA|eyJ)",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[A-Za-z0-9+=_-]{24,}")
_LONGEST = 4096


@dataclass
class Variables:
    """What was looked up: {name: value}, None where it was not set; those that were set and whose values are not kept."""

    values: dict[str, str | None] = field(default_factory=dict)
    withheld: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    """Those that the program's own code asked for; the others are its libraries'."""

    def given(self, env: dict[str, str]) -> dict[str, str]:
        """Return `env` with these variables in it; what was not set is not."""
        kept = {name: value for name, value in env.items() if name not in self.values}
        return kept | {name: value for name, value in self.values.items() if value is not None}

    def told(self) -> str:
        """In a line, what the program's own code asked for."""
        values = [
            f"{name}={value}" if (value := self.values[name]) is not None else f"{name} not set"
            for name in self.own_kept
        ]
        hidden = [f"{name} set, not kept" for name in self.own if name in self.withheld]
        others = len(self.values) + len(self.withheld) - len(values) - len(hidden)
        return ", ".join([*values, *hidden, *([f"{others} that libraries asked for"] if others else [])]) or "none"

    @property
    def own_kept(self) -> list[str]:
        """Those of `own` whose values are kept."""
        return [name for name in self.own if name in self.values]


def is_secret(name: str, value: str) -> bool:
    """Whether a variable may hold what only its owner is to know."""
    named = name not in _NO_SECRETS and _SECRET_NAME.search(name.upper()) is not None
    return named or len(value) > _LONGEST or bool(_SECRET_VALUE.search(value) or _RANDOM.search(value))


class Lookups:
    """What one recording has seen looked up."""

    def __init__(self, trace: Path, session: int) -> None:
        """Nothing is written before `write`."""
        self._trace, self._session = trace, session
        self._before = dict(os.environ)
        self._known = set(shell.snapshot()) | _OF_THE_SHELL
        self._pid = os.getpid()
        self._iterated = threading.local()
        self._set: set[str] = set()
        self.found = Variables()

    def asked(self, name: str) -> None:
        """A variable is looked up, whether it is set or not."""
        if (name in self._known or name in self._set) and getattr(self._iterated, "names", None) is None:
            return  # Some libraries ask at every step.
        if os.getpid() != self._pid or self._copied(name):
            return
        if name not in self._known and name not in self._set and not name.startswith(_OURS):
            self._known.add(name)
            self._keep(name, self._before.get(name))

    def _keep(self, name: str, value: str | None) -> None:
        if value is not None and is_secret(name, value):
            self.found.withheld.append(name)
        else:
            self.found.values[name] = value
        if _asked_by_the_program(sys._getframe(2)):
            self.found.own.append(name)

    def iterated(self, names: list[str]) -> None:
        """All have been gone through: who now asks for each in turn copies them, and has looked up none."""
        self._iterated.names = deque(names)

    def _copied(self, name: str) -> bool:
        caller = sys._getframe(3).f_code
        if caller.co_name == "__iter__" and "_collections_abc" in caller.co_filename:
            return True  # of `items()` or `values()`
        names = getattr(self._iterated, "names", None)
        if names and names[0] == name:
            names.popleft()
            return True
        self._iterated.names = None
        return False

    def changed(self, name: str) -> None:
        """The program sets or removes it itself."""
        self._set.add(name)

    def write(self) -> None:
        """Keep what is known."""
        if os.getpid() == self._pid and self.found != Variables():
            with contextlib.suppress(OSError):
                _write(self._trace, self._session, self.found)


def _asked_by_the_program(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename.endswith(
        (f"{os.sep}os.py", "<frozen os>", "_collections_abc>", __file__)
    ):
        frame = frame.f_back
    return frame is not None and frames.is_user_file(frame.f_code.co_filename)


@contextlib.contextmanager
def watched(lookups: Lookups) -> Iterator[None]:
    """Tell `lookups` while the block runs."""
    kind: Any = type(os.environ)
    with contextlib.ExitStack() as stack:
        for name, tell in (
            ("__getitem__", lookups.asked),
            ("__setitem__", lookups.changed),
            ("__delitem__", lookups.changed),
        ):
            original = getattr(kind, name)
            setattr(kind, name, _telling(original, tell))
            stack.callback(setattr, kind, name, original)
        through = kind.__iter__
        kind.__iter__ = _going_through(through, lookups)
        stack.callback(setattr, kind, "__iter__", through)
        yield


def _telling(original: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    def act(self: Any, key: Any, *value: Any) -> Any:
        if self is os.environ and isinstance(key, str):
            try:  # noqa: SIM105  some libraries ask at every step
                tell(key)
            except Exception:  # noqa: BLE001  nothing that goes wrong in keeping it reaches the program
                pass
        return original(self, key, *value)

    return act


def _going_through(original: Callable[..., Iterator[Any]], lookups: Lookups) -> Callable[..., Iterator[Any]]:
    def iterate(self: Any) -> Iterator[Any]:
        names = list(original(self))
        yield from names
        if self is os.environ:
            lookups.iterated(names)

    return iterate


# -- on the disk -----------------------------------------------------------------------------------------------------------


def file_of(trace: Path, session: int) -> Path:
    """Where a session's variables are kept."""
    return trace / "files" / f"{session:03d}.environment.json"


def _write(trace: Path, session: int, found: Variables) -> None:
    place = file_of(trace, session)
    place.parent.mkdir(exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    facts = {**asdict(found), "mark": origin.mark(_marked(session, found))}
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(with_sum(facts, indent=1))
    os.replace(temporary, place)


def _marked(session: int, found: Variables) -> str:
    return json.dumps(["rewind variables 1", session, asdict(found)], sort_keys=True)


def read(trace: Path, session: int, *, ours: bool = False) -> Variables:
    """What a session looked up, nothing where it is not known; `ours`: only where it bears this user's mark."""
    try:
        data = file_of(trace, session).read_bytes()
        facts = json.loads(data)
        if not proven(data, facts):
            return Variables()
        found = Variables({str(k): v for k, v in facts["values"].items()}, list(facts["withheld"]), list(facts["own"]))
        own_mark = not ours or origin.bears(_marked(session, found), facts["mark"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Variables()
    return found if own_mark else Variables()


def inherit(trace: Path, session: int, branch: Path) -> None:
    """A branch starts from what its parent's session looked up."""
    found = read(trace, session)
    if found != Variables():
        with contextlib.suppress(OSError):
            _write(branch, 0, found)
