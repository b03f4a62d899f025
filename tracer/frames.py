"""The frames of the user's program at a step boundary: which they are, their variables, read and put back.

Room: tracer. May touch: the frames it is given (`put_local` only).
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer import liveness
from tracer.iterators import POSITIONED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HERE)
_OURS = (_HERE + os.sep, os.path.join(_ROOT, "replay") + os.sep)
_OURS_TOO = os.path.join(_ROOT, "apps") + os.sep
_LIBRARIES = tuple(
    os.path.abspath(p) + os.sep
    for p in {
        sysconfig.get_paths()["stdlib"],
        sysconfig.get_paths()["platstdlib"],
        sysconfig.get_paths()["purelib"],
        sysconfig.get_paths()["platlib"],
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
"""Where libraries are installed, this interpreter's or another's."""
SHOWING = frozenset(
    (
        *("tqdm", "rich", "fastprogress", "alive_progress", "matplotlib", "seaborn", "plotly", "PIL", "IPython"),
        *("wandb", "tensorboard", "tensorboardX", "mlflow", "comet_ml", "neptune", "clearml", "aim", "swanlab"),
    )
)
"""Libraries that show how a training goes: no part of how it goes on lies in them."""
_NOT_FOLLOWED = SHOWING | frozenset(
    (
        *("torch", "functorch", "triton", "numpy", "scipy", "pandas", "pyarrow", "polars", "numba", "sympy"),
        *("hydra", "omegaconf", "click", "typer", "fire", "absl", "tyro", "jsonargparse", "sacred"),
        *("pytest", "_pytest", "pluggy", "hypothesis", "ipykernel", "traitlets", "tornado", "requests", "urllib3"),
    )
)
"""Nor in those that compute, configure or start programs."""
BOTTOM = "__rewind_program_starts_here__"
"""A local of this name marks the frame below which nothing belongs to the program."""


_programs: set[str] = set()


def add_program_folder(folder: str) -> None:
    """Files under `folder` are the user's own, wherever it lies: the recorded program is in it."""
    _programs.add(os.path.abspath(folder) + os.sep)
    is_user_file.cache_clear()
    is_followed.cache_clear()


@functools.lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Whether `filename` is the user's own code: not Python's, not a library's, not ours."""
    if filename.startswith("<"):
        return filename.startswith(("<ipython", "<stdin", "<string"))
    path = os.path.abspath(filename)
    if path.startswith(_OURS):
        return False
    # The nearest folder says whose it is: a program may lie among libraries, and libraries in its folder (`.venv`).
    own = max((len(folder) for folder in _programs if path.startswith(folder)), default=0)
    libraries = (len(folder) for folder in (*_LIBRARIES, _OURS_TOO) if path.startswith(folder))
    return own >= max(*libraries, len(path) - len(_in_package(path) or path), 0)


def _in_package(path: str) -> str | None:
    """Return what is left of `path` within the folder that libraries are installed in, None if it is in none."""
    ends = [at + len(folder) for folder in _PACKAGES if (at := path.rfind(folder)) >= 0]
    return path[max(ends) :] if ends else None


@functools.lru_cache(maxsize=4096)
def is_followed(filename: str) -> bool:
    """Whether what `filename` defines may hold state of the training: the user's own, or a library's that may drive the loop."""
    if is_user_file(filename):
        return True
    inside = None if filename.startswith("<") else _in_package(os.path.abspath(filename))
    if inside is None or os.path.abspath(filename).startswith((*_OURS, _OURS_TOO)) or not filename.endswith(".py"):
        return False
    return inside.partition(os.sep)[0].removesuffix(".py") not in _NOT_FOLLOWED


class _Block:
    frame: FrameType | None = None


_block = _Block()


def set_block(frame: FrameType | None) -> None:
    """A block of code in `frame` is the program, and what it calls: nothing outside it is (None: there is no such block)."""
    _block.frame = frame


def block() -> list[UserFrame]:
    """Return the frame that holds the block, if a block is the program: loops around what it calls are there."""
    return [] if _block.frame is None else [UserFrame("<block>", _block.frame)]


@dataclass(frozen=True)
class UserFrame:
    """One frame of the program: `name` is unique within the stack and the same in every run of the same code."""

    name: str
    frame: FrameType

    @property
    def is_module(self) -> bool:
        return self.frame.f_locals is self.frame.f_globals


def _program_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The program's frames from `frame` outwards; that of the block that is the program only if there is none inside it.

    A library's are among them where they lie inside one of the user's own: it may drive the loop.
    """
    alone = True
    called: list[FrameType] = []
    while frame is not None and BOTTOM not in frame.f_code.co_varnames:
        outermost = frame is _block.frame
        if is_user_file(frame.f_code.co_filename) and (alone or not outermost):
            alone = False
            yield from called
            called.clear()
            yield frame
        elif not outermost and is_followed(frame.f_code.co_filename):
            called.append(frame)
        frame = None if outermost else frame.f_back


def user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost of the program's frames from `frame` outwards, None where there is none."""
    while frame is not None and BOTTOM not in frame.f_code.co_varnames:
        file = frame.f_code.co_filename
        if is_user_file(file):
            return frame
        if frame is _block.frame or is_followed(file):
            return next(_program_frames(frame), None)
        frame = frame.f_back
    return None


def user_frames(frame: FrameType | None) -> list[UserFrame]:
    """Return the program's frames from `frame` outwards, innermost first, up to the frame marked with BOTTOM."""
    names: dict[str, int] = {}
    result = []
    for each in reversed(list(_program_frames(frame))):
        name = each.f_code.co_qualname if hasattr(each.f_code, "co_qualname") else each.f_code.co_name
        names[name] = names.get(name, 0) + 1
        result.append(UserFrame(name if names[name] == 1 else f"{name}#{names[name]}", each))
    return result[::-1]


def site_of(frames: list[UserFrame]) -> list[list[Any]]:
    """Return the place in the program where `frames` stand, as JSON: file's base name, function, line, outermost first."""
    return [[os.path.basename(f.frame.f_code.co_filename), f.name, f.frame.f_lineno] for f in frames[::-1]]


def same_place(recorded: list[list[Any]], here: list[list[Any]]) -> bool:
    """Whether two places are the same; a function that is replayed alone lacks the frames that were around it.

    What only calls it (`program=lambda: train(100)`) and was not there while recording is no part of the place.
    """
    if len(here) > 1 and here[0][1] != "<module>" and all(place[1] != here[0][1] for place in recorded):
        here = here[1:]
    common = min(len(recorded), len(here))
    return common > 0 and recorded[-common:] == here[-common:]


def code_site(frames: list[UserFrame]) -> tuple[tuple[CodeType, int], ...]:
    """Return the same place as something to compare within one process."""
    return tuple((f.frame.f_code, f.frame.f_lasti) for f in frames)


def live_locals(frame: FrameType, kind: type = object) -> dict[str, Any]:
    """Return the variables of a frame that its code may still read, closures included; nothing is kept alive by asking.

    Of one `kind` only, where it is given.
    """
    values = frame.f_locals
    found = values.items() if kind is object else [(k, v) for k, v in values.items() if isinstance(v, kind)]
    live = liveness.live_names(frame.f_code, frame.f_lasti)
    cells = frame.f_code.co_cellvars + frame.f_code.co_freevars
    result = {k: v for k, v in found if (k in live or k in cells) and not k.startswith("__")}
    _release(frame, values)
    return result


def _release(frame: FrameType, values: Any) -> None:
    """Before 3.13 a function's frame keeps the snapshot of its variables, and with it the tensors in it.

    Of a module, a class body or code run with its own namespace it is no snapshot: there it is the variables themselves.
    """
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and isinstance(values, dict):
        values.clear()


def int_local(stack: list[UserFrame], name: str) -> int | None:
    """Return the innermost variable `name` of the program if it is a whole number, else None."""
    for user in stack:
        values = user.frame.f_locals
        found = values.get(name)
        _release(user.frame, values)
        if type(found) is int:
            return found
    return None


def put_local(frame: FrameType, name: str, value: Any) -> None:
    """Set variable `name` of a running frame."""
    values = frame.f_locals
    values[name] = value
    if sys.version_info < (3, 13) and values is not frame.f_globals:
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        _release(frame, values)


# -- the iterators of the frame's for loops ------------------------------------------------------------------------------------

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_FRAME_POINTER = 3 * _POINTER
_BACK_POINTER = {(3, 11): 40, (3, 12): 48, (3, 13): 48}
_LOCALSPLUS = 72


def loop_iterators(frame: FrameType) -> list[Any]:
    """Return the iterators on the value stack of `frame`, outermost loop first; none on an interpreter not known here."""
    values = stack_values(frame)
    return [
        v for v in values if isinstance(v, POSITIONED) or hasattr(v, "gi_frame") or type(v).__module__ == "builtins"
    ]


def stack_values(frame: FrameType) -> list[Any]:
    """Return what lies on the value stack of `frame`, bottom first; nothing on an interpreter not known here."""
    address = _interpreter_frame(frame)
    if address is None:
        return []
    code = frame.f_code
    first = _locals_plus(code)
    result = []
    for i in range(first, first + liveness.stack_depth(code, frame.f_lasti)):
        pointer = ctypes.c_void_p.from_address(address + _LOCALSPLUS + i * _POINTER).value
        if pointer:
            result.append(ctypes.cast(pointer, ctypes.py_object).value)
    return result


def _locals_plus(code: CodeType) -> int:
    cells_only = [c for c in code.co_cellvars if c not in code.co_varnames]
    return code.co_nlocals + len(cells_only) + len(code.co_freevars)


def _interpreter_frame(frame: FrameType) -> int | None:
    back = _BACK_POINTER.get(sys.version_info[:2])
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    if back is None or sys.implementation.name != "cpython" or not with_gil:
        return None
    address = ctypes.c_void_p.from_address(id(frame) + _FRAME_POINTER).value
    if not address or ctypes.c_void_p.from_address(address + back).value != id(frame):
        return None
    return address
