"""A user's function as text: named, hashed, sent to another process, compiled there. # B3

Room: replay. May touch: sys.modules and sys.path of the process that compiles it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
import textwrap
import types
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.errors import UsageError
from tracer.sections import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Function:
    """The function `name` of the module whose text is `source`; `folder` and `package` are for its imports."""

    name: str
    source: str
    label: str
    folder: str | None = None
    package: str | None = None

    @property
    def digest(self) -> str:
        """Twelve hex digits of the source's hash: another source is another metric."""
        return hashlib.sha256(f"{self.name}\0{self.source}".encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)

    def load(self) -> Callable[[Any], Any]:
        """Run the module's text in this process and return the function. Raise UsageError."""
        module = _Text(f"rewind_function_{self.digest}")
        if self.folder:
            module.__dict__["__file__"] = str(Path(self.folder) / self.label)
        if self.package:
            module.__package__ = self.package
        sys.modules[module.__name__] = module
        if self.folder and self.folder not in sys.path:
            sys.path.append(self.folder)
        try:
            # The name in <> keeps the module out of what is taken for the recorded program's own code.
            code = compile(self.source, f"<function {self.label}>", "exec", dont_inherit=True)
            exec(code, module.__dict__)
        except Exception as error:
            raise UsageError(f"{self.label} cannot be loaded: {type(error).__name__}: {error}") from error
        found: Any = module
        for part in self.name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise UsageError(f"{self.label} has no function {self.name}")
        return found


class _Text(types.ModuleType):
    """A module of text: to its own code it has the file it was read from, to others none: it is no code of the recorded program."""

    __file__ = property(lambda self: None)  # type: ignore[assignment]


def find(given: str | Function | Callable[[Any], Any]) -> Function:
    """Return the function named by `file.py:name` or `module:name`, or that of a Python function. Raise UsageError."""
    if isinstance(given, Function):
        return given
    if callable(given):
        return _of_callable(given)
    place, colon, name = str(given).rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{given!r} names no function: give file.py:name or module:name")
    if place.endswith(".py"):
        return _of_file(Path(place), name, None)
    return _of_module(place, name)


def _of_file(path: Path, name: str, package: str | None) -> Function:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", path=path) from None
    return Function(name, text, path.name, str(path.resolve().parent), package)


def _of_module(module: str, name: str) -> Function:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.find_spec(module)
    except ImportError as error:
        raise UsageError(f"no module {module}: {error}") from None
    finally:
        sys.path.remove(folder)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError(f"no module {module} with a source file")
    found = _of_file(Path(spec.origin), name, spec.parent)
    root = Path(spec.origin).resolve().parents[module.count(".")]
    return Function(name, found.source, module, str(root), found.package)


def _of_callable(function: Callable[[Any], Any]) -> Function:
    name = getattr(function, "__qualname__", "")
    try:
        file = inspect.getsourcefile(function)
        own = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise UsageError("the function's source cannot be found: write it into a file and give file.py:name") from None
    if "<locals>" not in name and file and os.path.exists(file):
        package = getattr(inspect.getmodule(function), "__package__", None)
        found = _of_file(Path(file), name, package or None)
        return replace(found, source=_defined(found.source)) if function.__module__ == "__main__" else found
    if getattr(function, "__closure__", None):
        raise UsageError(f"{name} uses variables of the function around it, which cannot be sent with its source")
    if not own.startswith(("def ", "@")):
        raise UsageError("a lambda's source cannot be cut out: write a `def`")
    return Function(name.rpartition(".")[2], own, name)


def _defined(text: str) -> str:
    """What a script imports and defines, without what it does: its functions can be taken, it must not run again."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    body = ast.parse(text).body
    named = [
        n for n in body if isinstance(n, kept) or (isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant))
    ]
    return "\n\n".join(ast.get_source_segment(text, node, padded=True) or "" for node in named)


def tidy(name: str, result: Any) -> dict[str, Any]:
    """Return what a metric returned as {name: float | tensor | array}; one number goes by the function's name.

    Raise UsageError for what is neither number nor tensor, and for a number that no float holds.
    """
    found = result if isinstance(result, dict) else {name: result}
    return {str(key): _number_or_array(str(key), value) for key, value in found.items()}


def _number_or_array(key: str, value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach()
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return _float(key, value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return value
    if isinstance(value, (list, tuple)):
        import numpy as np  # noqa: PLC0415  a list of numbers is rare

        found = np.asarray(value)
        return found if beyond_floats(found) else found.astype(np.float64)
    raise UsageError(f"{key!r} is a {type(value).__name__}: a metric gives numbers, tensors or arrays")


def _float(key: str, value: float) -> float:
    if isinstance(value, int) and abs(value) > WHOLE:
        raise UsageError(f"{key!r} is {value}, which no float holds: return it as an array, [{value}]")
    return float(value)


def beyond_floats(array: Any) -> bool:
    """Whether a NumPy array has whole numbers that no float64 holds."""
    return array.dtype.kind in "iu" and array.size > 0 and bool((array > WHOLE).any() or (array < -WHOLE).any())
