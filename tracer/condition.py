"""Conditions on a step, as text: `min(bcl.win_rate) < 0.01`, `isnan(loss)`, `loss > 3 * median(loss, 100)`. # B6

A name is a column of `steps`, another metric, a capture (`bcl.win_rate` is `bcl/win_rate`), a tensor of the state
that the step starts from (`encoder.weight`), or a gradient (`grad.encoder.weight`); the end of a name will do where no
other ends so (`win_rate`). `min max mean median sum std norm any all` of a tensor go over its elements; with a number
behind, `median(loss, 100)`, over as many steps before this one (unknown, so never true, before the tenth). `abs sqrt
log exp isnan isinf isfinite` go by element. A condition on a tensor holds where it does for any element;
`bcl.win_rate[31]` is one row of it.
Room: tracer. Pure: nothing of the text is executed as Python.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracer.errors import NameUnknownError, UsageError

Lookup = Callable[[str], np.ndarray]
"""A name -> its values [T] or [T, ...] at the steps that are asked about."""

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_EACH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "log": np.log,
    "exp": np.exp,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
}
_OVER: dict[str, Callable[..., np.ndarray]] = {
    "min": np.min,
    "max": np.max,
    "mean": np.mean,
    "median": np.median,
    "sum": np.sum,
    "std": np.std,
    "any": np.any,
    "all": np.all,
    "norm": np.linalg.norm,
}
_WINDOWED = ("min", "max", "mean", "median", "sum", "std")
LEAST = 10
"""So many steps are needed before a window says anything."""


@dataclass(frozen=True)
class Condition:
    """A parsed condition; `names` are what it asks for, `windowed` those of which it asks for steps before."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]
    windowed: tuple[str, ...]

    def holds(self, lookup: Lookup) -> np.ndarray:
        """Whether it holds, bool [T]. Raise what `lookup` raises; UsageError where shapes do not go together."""
        with np.errstate(all="ignore"):
            try:
                found = np.asarray(_value(self.tree, lookup))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{self.text!r}: {error}") from None
        truth = found.astype(bool) & ~np.isnan(found) if found.dtype.kind == "f" else found.astype(bool)
        return truth.reshape(len(truth), -1).any(axis=1) if truth.ndim else truth.reshape(1)


def parse(text: str) -> Condition:
    """Return the condition that `text` says. Raise UsageError for what is none."""
    try:
        tree = ast.parse(_DOTTED.sub(_numbers_named, text.strip()), mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"{text!r} is no condition: {error.msg}") from None
    names: list[str] = []
    windowed: list[str] = []
    _check(tree, text, names, windowed)
    if not names:
        raise UsageError(f"{text!r} asks for nothing of a step")
    return Condition(text, tree, tuple(dict.fromkeys(names)), tuple(dict.fromkeys(windowed)))


def _check(node: ast.AST, text: str, names: list[str], windowed: list[str]) -> None:
    name = _dotted(node)
    if name is not None:
        names.append(name)
    elif isinstance(node, ast.Call):
        _check_call(node, text)
        if len(node.args) == 2:
            _check(node.args[0], text, windowed, windowed)
        _check_all(node.args, text, names, windowed)
    elif isinstance(node, ast.Subscript):
        if not isinstance(node.slice, ast.Constant) or type(node.slice.value) is not int:
            raise UsageError(f"{text!r}: an element is chosen by one number, as in bcl.win_rate[31]")
        _check(node.value, text, names, windowed)
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare)):
        _check_all(list(ast.iter_child_nodes(node)), text, names, windowed)
    elif not isinstance(node, ast.Constant) or not isinstance(node.value, (bool, int, float)):
        raise UsageError(f"{text!r}: {ast.unparse(node)} is not known here")


def _check_all(nodes: Sequence[ast.AST], text: str, names: list[str], windowed: list[str]) -> None:
    for node in nodes:
        if isinstance(node, ast.expr):
            _check(node, text, names, windowed)
        elif type(node) not in (*_OPERATORS, ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd):
            raise UsageError(f"{text!r}: {type(node).__name__} is not known here")


def _check_call(node: ast.Call, text: str) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else "?"
    known = name in _EACH or name in _OVER
    if not known or node.keywords or not 1 <= len(node.args) <= 2:
        raise UsageError(f"{text!r}: there are {', '.join(sorted({*_EACH, *_OVER}))}, of one argument")
    if len(node.args) == 2:
        size = node.args[1]
        if name not in _WINDOWED or not (isinstance(size, ast.Constant) and type(size.value) is int and size.value > 0):
            raise UsageError(f"{text!r}: a window is one of {', '.join(_WINDOWED)} with a number of steps")


_DOTTED = re.compile(r"(?<![\w.])(?:\d+\.(?!e\d))?[^\W\d]\w*(?:\.\w+)*")
_NUMBER = "number_"


def _numbers_named(found: re.Match[str]) -> str:
    """`0.weight` of an nn.Sequential is a name, too: its number gets a form that Python's grammar takes."""
    return ".".join(_NUMBER + part if part.isdigit() else part for part in found.group().split("."))


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return _plain(node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return None if owner is None else f"{owner}.{_plain(node.attr)}"
    return None


def _plain(part: str) -> str:
    number = part.removeprefix(_NUMBER)
    return number if number.isdigit() else part


def _value(node: ast.expr, lookup: Lookup) -> Any:
    name = _dotted(node)
    if name is not None:
        return lookup(name)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Call):
        return _call(node, lookup)
    if isinstance(node, ast.Subscript):
        return _element(node, lookup)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](*_aligned(_value(node.left, lookup), _value(node.right, lookup)))
    if isinstance(node, ast.UnaryOp):
        return _unary(node, lookup)
    if isinstance(node, ast.BoolOp):
        return _all_or_any(node, lookup)
    assert isinstance(node, ast.Compare)
    return _compare(node, lookup)


def _element(node: ast.Subscript, lookup: Lookup) -> np.ndarray:
    values = np.asarray(_value(node.value, lookup))
    assert isinstance(node.slice, ast.Constant)
    index = int(node.slice.value)  # type: ignore[call-overload]
    if values.ndim < 2 or index >= values.shape[1]:
        raise UsageError(f"{ast.unparse(node)}: there are {values.shape[1] if values.ndim > 1 else 'no'} elements")
    return values[:, index]


def _unary(node: ast.UnaryOp, lookup: Lookup) -> Any:
    value = _value(node.operand, lookup)
    if isinstance(node.op, ast.Not):
        return ~_truth(value)
    return -value if isinstance(node.op, ast.USub) else value


def _all_or_any(node: ast.BoolOp, lookup: Lookup) -> np.ndarray:
    combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
    parts = [_truth(_value(part, lookup)) for part in node.values]
    result = parts[0]
    for part in parts[1:]:
        result = combine(result, part)
    return result


def _truth(value: Any) -> np.ndarray:
    """Whether each step has it: of a tensor, any element."""
    found = np.asarray(value)
    found = (found != 0) & ~np.isnan(found) if found.dtype.kind == "f" else found.astype(bool)
    return found.reshape(len(found), -1).any(axis=1) if found.ndim > 1 else found


def _compare(node: ast.Compare, lookup: Lookup) -> np.ndarray:
    values = [_value(part, lookup) for part in (node.left, *node.comparators)]
    pairs = zip(values, node.ops, values[1:], strict=False)
    parts = [_truth(_OPERATORS[type(op)](*_aligned(a, b))) for a, op, b in pairs]
    return np.logical_and.reduce(parts)


def _aligned(a: Any, b: Any) -> tuple[Any, Any]:
    """[T] and [T, D] side by side: the step is the first dimension of both."""
    x, y = np.asarray(a), np.asarray(b)
    if x.ndim and y.ndim and x.ndim != y.ndim:
        wide = max(x.ndim, y.ndim)
        x, y = (v.reshape(v.shape + (1,) * (wide - v.ndim)) for v in (x, y))
    return x, y


def _call(node: ast.Call, lookup: Lookup) -> Any:
    assert isinstance(node.func, ast.Name)
    name = node.func.id
    if len(node.args) == 2:
        size = node.args[1]
        assert isinstance(size, ast.Constant)
        if isinstance(lookup, Recent):
            return _last_window(name, np.asarray(_value(node.args[0], lookup.whole)), int(size.value))
        return _window(name, np.asarray(_value(node.args[0], lookup)), int(size.value))
    value = np.asarray(_value(node.args[0], lookup))
    if name in _EACH:
        return _EACH[name](value)
    if value.ndim < 2:
        return np.abs(value) if name == "norm" else value
    return _OVER[name](value.reshape(len(value), -1), axis=1)


def _window(name: str, value: np.ndarray, size: int) -> np.ndarray:
    _must_be_scalar(name, value, size)
    import pandas as pd  # noqa: PLC0415  heavy, and few conditions have a window

    rolling = pd.Series(value).shift(1).rolling(size, min_periods=min(size, LEAST))
    return getattr(rolling, name)().to_numpy()


def _last_window(name: str, value: np.ndarray, size: int) -> np.ndarray:
    """The same for the newest step alone, [1]."""
    _must_be_scalar(name, value, size)
    before = value[-1 - size : -1]
    before = before[before == before]
    if len(before) < min(size, LEAST):
        return np.array([np.nan])
    return np.array([_median(before) if name == "median" else _OVER[name](before)])


def _median(values: np.ndarray) -> float:
    """NumPy's own takes ten times as long for so few."""
    ordered = np.sort(values)
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def _must_be_scalar(name: str, value: np.ndarray, size: int) -> None:
    if value.ndim != 1:
        raise UsageError(f"{name}(.., {size}) is over steps: reduce the tensor first, as in {name}(mean(x), {size})")


class Recent:
    """The values of the last steps, for a condition that is asked at every step of a run. A `Lookup` of the newest."""

    def __init__(self, asked: Condition) -> None:
        """For what `asked` needs, and no more."""
        self._asked = asked
        sizes = [n.args[1].value for n in ast.walk(asked.tree) if isinstance(n, ast.Call) and len(n.args) == 2]  # type: ignore[attr-defined]
        longest = max(sizes, default=0) + 1
        self._values = {name: deque(maxlen=longest if name in asked.windowed else 1) for name in asked.names}
        self._plain = _scalar(asked.tree, self._values)

    def __call__(self, name: str) -> np.ndarray:
        """The newest value of `name`, [1] or [1, ...]."""
        return np.asarray([self._values[name][-1]])

    def whole(self, name: str) -> np.ndarray:
        """The values of `name` that are known, oldest first."""
        return np.asarray(self._values[name])

    def holds(self, value: Callable[[str], Any]) -> bool:
        """Take in a step, of which `value(name)` is the value; return whether the condition holds there."""
        scalars = True
        for name, values in self._values.items():
            values.append(found := value(name))
            scalars = scalars and type(found) is float
        if scalars and self._plain is not None:
            try:
                return _plain_truth(self._plain())
            except (_NotPlainError, ArithmeticError):
                pass  # Arrays know how to divide by zero.
        return bool(self._asked.holds(self)[-1])


class _NotPlainError(Exception):
    """Python's numbers would give another answer here than arrays."""


_Plain = Callable[[], Any]


def _scalar(node: ast.expr, values: dict[str, deque[Any]]) -> _Plain | None:
    """The same as `_value`, for the newest step where all names are scalars: arrays of one number take ten times as long.

    None where the two might differ in a bit.
    """
    name = _dotted(node)
    if name is not None:
        series = values[name]
        return lambda: series[-1]
    if isinstance(node, ast.Constant):
        constant = node.value
        return lambda: constant
    make = _PLAIN.get(type(node))
    return None if make is None else make(node, values)


def _plain_parts(nodes: Iterable[ast.expr], values: dict[str, deque[Any]]) -> list[_Plain] | None:
    parts = [_scalar(node, values) for node in nodes]
    return None if None in parts else [part for part in parts if part is not None]


def _plain_truth(value: Any) -> bool:
    return bool(value) and value == value


def _plain_number(value: Any) -> Any:
    if type(value) is bool:
        raise _NotPlainError
    return value


def _plain_sum(node: ast.BinOp, values: dict[str, deque[Any]]) -> _Plain | None:
    parts = _plain_parts((node.left, node.right), values)
    if parts is None or isinstance(node.op, (ast.Pow, ast.Mod)):
        return None
    (left, right), combine = parts, _OPERATORS[type(node.op)]
    return lambda: combine(_plain_number(left()), _plain_number(right()))


def _plain_unary(node: ast.UnaryOp, values: dict[str, deque[Any]]) -> _Plain | None:
    part = _scalar(node.operand, values)
    if part is None:
        return None
    if isinstance(node.op, ast.Not):
        return lambda: not _plain_truth(part())
    return (lambda: -_plain_number(part())) if isinstance(node.op, ast.USub) else part


def _plain_logic(node: ast.BoolOp, values: dict[str, deque[Any]]) -> _Plain | None:
    parts = _plain_parts(node.values, values)
    if parts is None:
        return None
    combine = all if isinstance(node.op, ast.And) else any
    return lambda: combine(_plain_truth(part()) for part in parts)


def _plain_compare(node: ast.Compare, values: dict[str, deque[Any]]) -> _Plain | None:
    parts = _plain_parts((node.left, *node.comparators), values)
    if parts is None:
        return None
    chain = [(a, _OPERATORS[type(op)], b) for a, op, b in zip(parts, node.ops, parts[1:], strict=False)]
    return lambda: all(compare(a(), b()) for a, compare, b in chain)


def _plain_call(node: ast.Call, values: dict[str, deque[Any]]) -> _Plain | None:
    assert isinstance(node.func, ast.Name)
    if len(node.args) == 2:
        return _plain_window(node, values)
    part, known = _scalar(node.args[0], values), _PLAIN_EACH.get(node.func.id)
    return None if part is None or known is None else lambda: known(_plain_number(part()))


def _plain_window(node: ast.Call, values: dict[str, deque[Any]]) -> _Plain | None:
    assert isinstance(node.func, ast.Name)
    assert isinstance(node.args[1], ast.Constant)
    name = _dotted(node.args[0])
    if name is None or node.func.id not in ("median", "min", "max"):
        return None
    series, kind, size = values[name], node.func.id, int(node.args[1].value)  # type: ignore[call-overload]

    def window() -> float:
        past = list(series)[-1 - size : -1]
        known = [x for x in past if x == x]
        if len(known) < min(size, LEAST):
            return float("nan")
        if kind == "median":
            known.sort()
            middle = len(known) // 2
            return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
        return min(known) if kind == "min" else max(known)

    return window


_PLAIN: dict[type, Callable[[Any, dict[str, deque[Any]]], _Plain | None]] = {
    ast.BinOp: _plain_sum,
    ast.UnaryOp: _plain_unary,
    ast.BoolOp: _plain_logic,
    ast.Compare: _plain_compare,
    ast.Call: _plain_call,
}
_PLAIN_EACH: dict[str, Callable[[Any], Any]] = {
    "abs": abs,
    "norm": abs,
    "isnan": math.isnan,
    "isinf": math.isinf,
    "isfinite": math.isfinite,
    **dict.fromkeys(("min", "max", "mean", "median", "sum", "std", "any", "all"), lambda value: value),
}


def match(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` means: itself (`/` is a dot), or the only one that ends with it.

    `win_rate` is `bcl/win_rate` where no other capture ends so. Raise NameUnknownError where several do.
    """
    dotted = {key.replace("/", "."): key for key in known}
    if name in dotted:
        return dotted[name]
    found = [key for place, key in dotted.items() if place.endswith(f".{name}")]
    if len(found) > 1:
        raise NameUnknownError(f"{name!r} may be any of {', '.join(sorted(found)[:6])}: say which")
    return found[0] if found else None


def pick(step: Any, name: str) -> Any:
    """The value of `name` at a re-executed step. Raise NameUnknownError."""
    if name == "loss":
        return float("nan") if step.loss is None else step.loss
    if name in step.state:
        return step.state[name]
    if name.startswith("grad.") and name[5:] in step.state:
        found = step.grads.get(name[5:])
        return step.state[name[5:]] * float("nan") if found is None else found
    key = match(name, step.captures)
    if key is not None:
        return step.captures[key]
    key = match(name, step.state)
    if key is not None:
        return step.state[key]
    raise NameUnknownError(
        f"step {step.step} has no {name!r}: it is neither recorded, captured, nor a tensor of the model"
    )
