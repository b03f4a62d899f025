"""The user's program: found, run as Python itself would run it, and its source files kept.

Room: tracer. May touch: sys.argv, sys.path, sys.modules["__main__"] while the program runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tracer import frames
from tracer.errors import ProgramError
from tracer.manifest import Program, source_name
from tracer.segments import write_atomically

_MAX_SOURCE = 4 << 20
Source = Callable[[str], bytes | None]


def find(target: str, argv: Sequence[str], *, module: bool = False) -> Program:
    """Return the program of a script's path, or of a module's name. Raise ProgramError if there is none."""
    cwd = os.getcwd()
    if not module:
        path = Path(target)
        if not path.is_file():
            raise ProgramError(f"no such script: {target}", path=path)
        return Program("script", str(path.resolve()), None, tuple(argv), cwd)
    sys.path.insert(0, cwd)
    try:
        spec = importlib.util.find_spec(target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{target}.__main__")
    except ImportError as error:
        raise ProgramError(f"no such module: {target} ({error})") from None
    finally:
        sys.path.remove(cwd)
    if spec is None or spec.origin is None:
        raise ProgramError(f"no such module: {target}, or it cannot be run (python -m {target})")
    return Program("module", spec.origin, target, tuple(argv), cwd)


def run(program: Program, source: Source | None = None) -> None:
    """Run `program` as `__main__` of this process; what it raises passes through.

    `source(path)` gives the text to run for a file instead of what lies on the disk now, or None.
    """
    assert program.path is not None
    text = (source(program.path) if source else None) or Path(program.path).read_bytes()
    code = compile(text, program.path, "exec", dont_inherit=True)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=program.path, __builtins__=__builtins__, __cached__=None)
    if program.kind == "module":
        assert program.module is not None
        spec = importlib.util.spec_from_file_location(_module_name(program), program.path)
        main.__spec__ = spec
        main.__package__ = _module_name(program).rpartition(".")[0]
    frames.add_program_folder(os.path.dirname(program.path))
    with _as_main(main, program):
        _start(code, main.__dict__)


def _module_name(program: Program) -> str:
    assert program.module is not None
    assert program.path is not None
    return f"{program.module}.__main__" if program.path.endswith("__main__.py") else program.module


def _start(code: types.CodeType, namespace: dict[str, object]) -> None:
    __rewind_program_starts_here__ = True  # noqa: F841  marks this frame: see frames.BOTTOM
    exec(code, namespace)


@contextlib.contextmanager
def _as_main(main: types.ModuleType, program: Program) -> Iterator[None]:
    assert program.path is not None
    old_main, old_argv, old_path = sys.modules["__main__"], sys.argv, list(sys.path)
    sys.modules["__main__"] = main
    sys.argv = [program.path if program.kind == "module" else _argv0(program), *program.argv]
    folder = program.cwd if program.kind == "module" else os.path.dirname(program.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = old_main, old_argv, old_path


def _argv0(program: Program) -> str:
    assert program.path is not None
    relative = os.path.relpath(program.path, program.cwd)
    return program.path if relative.startswith("..") else relative


def print_exception(error: BaseException) -> None:
    """Print the traceback of what the program raised, without the frames that are ours."""
    trace = error.__traceback__
    while trace is not None and not frames.is_user_file(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    if trace is None and error.__traceback__ is not None and not isinstance(error, SyntaxError):
        trace = error.__traceback__
    traceback.print_exception(type(error), error, trace)


def keep_sources(program: Program, trace: Path, kept: dict[str, str]) -> dict[str, str]:
    """Copy the program's own source files into `trace`/source; return {absolute path: path in the trace}.

    `kept` says which are there already.
    """
    root = os.path.dirname(program.path) if program.path else program.cwd
    files = {program.path} if program.path else set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if (
            file
            and file.endswith(".py")
            and frames.is_user_file(file)
            and file.startswith((root + os.sep, program.cwd + os.sep))
        ):
            files.add(os.path.abspath(file))
    result = dict(kept)
    for file in sorted(f for f in files if f not in kept):
        with contextlib.suppress(OSError):
            data = Path(file).read_bytes()
            if len(data) <= _MAX_SOURCE:
                name = source_name(file, data)
                os.stat(trace)  # Where it was removed it is not begun anew by these alone.
                write_atomically(trace / name, data, synced=False)
                result[file] = name
    return result
