"""Which variables of a suspended frame may still be read: those are state, the others need not be recorded.

A backward data-flow analysis over a code object's bytecode: a variable is live at an instruction if some path from there reads
it before writing it. Exception handlers count as successors of every instruction they cover. At module level a name that any
nested function mentions is always live. What cannot be analysed is taken for live.
Room: tracer. Pure.
"""

from __future__ import annotations

import bisect
import dis
from functools import lru_cache
from types import CodeType
from typing import Any

_READS = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "LOAD_NAME", "DELETE_FAST", "LOAD_FAST_BORROW")
_WRITES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL")
_PAIRS = {
    "LOAD_FAST_LOAD_FAST": ("r", "r"),
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": ("r", "r"),
    "STORE_FAST_LOAD_FAST": ("w", "r"),
    "STORE_FAST_STORE_FAST": ("w", "w"),
}
_GLOBAL_READS = ("LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_ENDS = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")
_JUMPS = ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")


def live_names(code: CodeType, lasti: int) -> frozenset[str]:
    """Return the variables that are live after the instruction at byte `lasti` of `code`.

    Closure variables are not among them: they live in cells and are always state.
    """
    offsets, live = _analysis(code)
    # While a call runs, `lasti` may lie in the inline cache behind its instruction.
    index = bisect.bisect_right(offsets, lasti) - 1
    return live[index] if index >= 0 else frozenset(code.co_varnames) | frozenset(code.co_names)


def stack_depth(code: CodeType, lasti: int) -> int:
    """Return how many entries of the value stack are surely held while the instruction at byte `lasti` runs.

    The operands of a call are not counted (the callee may have taken them), the iterator of a running FOR_ITER is.
    """
    offsets, depths = _depths(code)
    index = bisect.bisect_right(offsets, lasti) - 1
    return depths[index] if index >= 0 else 0


@lru_cache(maxsize=256)
def _depths(code: CodeType) -> tuple[list[int], list[int]]:
    instructions = list(dis.get_instructions(code))
    position = {ins.offset: i for i, ins in enumerate(instructions)}
    before: list[int | None] = [None] * len(instructions)
    work = [(0, 0)]
    # A handler starts at the depth of its table entry, plus the exception (and the offset where it was raised).
    handlers = [entry for entry in _entries(code) if entry.target in position]
    work += [(position[entry.target], entry.depth + 1 + int(entry.lasti)) for entry in handlers]
    while work:
        i, depth = work.pop()
        if before[i] is not None:
            continue
        before[i] = depth
        ins = instructions[i]
        for j in _successors(i, instructions, position):
            jump = ins.argval == instructions[j].offset and j != i + 1
            work.append((j, depth + _stack_effect(ins, jump=jump)))
    return [ins.offset for ins in instructions], [_held(i, before, instructions) for i in range(len(instructions))]


def _stack_effect(ins: dis.Instruction, *, jump: bool) -> int:
    # A generator's frame begins with one entry (what is sent to it), which until Python 3.12 no instruction accounts for.
    return 1 if ins.opname == "RETURN_GENERATOR" else dis.stack_effect(ins.opcode, ins.arg, jump=jump)


def _held(i: int, before: list[int | None], instructions: list[dis.Instruction]) -> int:
    depth, ins = before[i] or 0, instructions[i]
    if ins.opname == "FOR_ITER":
        return depth
    return max(0, min(depth, depth + dis.stack_effect(ins.opcode, ins.arg, jump=False)) - 1)


@lru_cache(maxsize=256)
def _analysis(code: CodeType) -> tuple[list[int], list[frozenset[str]]]:
    instructions = list(dis.get_instructions(code))
    position = {ins.offset: i for i, ins in enumerate(instructions)}
    successors = [_successors(i, instructions, position) for i in range(len(instructions))]
    for entry in _entries(code):
        for i, ins in enumerate(instructions):
            if entry.start <= ins.offset < entry.end and entry.target in position:
                successors[i].append(position[entry.target])
    always = _always_live(code)
    live_in: list[frozenset[str]] = [frozenset()] * len(instructions)
    live_out: list[frozenset[str]] = [frozenset()] * len(instructions)
    changed = True
    while changed:
        changed = False
        for i in range(len(instructions) - 1, -1, -1):
            out = frozenset().union(*(live_in[j] for j in successors[i])) if successors[i] else frozenset()
            reads, writes = _effect(instructions[i])
            new = (out - writes) | reads
            if new != live_in[i] or out != live_out[i]:
                live_in[i], live_out[i], changed = new, out, True
    return [ins.offset for ins in instructions], [out | always for out in live_out]


def _successors(i: int, instructions: list[dis.Instruction], position: dict[int, int]) -> list[int]:
    ins = instructions[i]
    result = []
    target = ins.argval if ins.opcode in dis.hasjrel or ins.opcode in dis.hasjabs else None
    if target in position:
        result.append(position[target])
    if ins.opname not in _ENDS and ins.opname not in _JUMPS and i + 1 < len(instructions):
        result.append(i + 1)
    return result


def _effect(ins: dis.Instruction) -> tuple[frozenset[str], frozenset[str]]:
    if ins.opname in _PAIRS and isinstance(ins.argval, tuple):
        kinds = _PAIRS[ins.opname]
        reads = {name for kind, name in zip(kinds, ins.argval, strict=True) if kind == "r"}
        writes = {name for kind, name in zip(kinds, ins.argval, strict=True) if kind == "w"}
        # In a store-then-load of one name, the load reads what the store wrote.
        return frozenset(reads - writes if kinds[0] == "w" else reads), frozenset(writes)
    if ins.opname in _READS or ins.opname in _GLOBAL_READS:
        return frozenset((ins.argval,)), frozenset()
    if ins.opname in _WRITES:
        return frozenset(), frozenset((ins.argval,))
    return frozenset(), frozenset()


def _entries(code: CodeType) -> list[Any]:
    parse = getattr(dis, "_parse_exception_table", None)
    return [] if parse is None else list(parse(code))


def _always_live(code: CodeType) -> frozenset[str]:
    names: set[str] = set()
    stack = [c for c in code.co_consts if isinstance(c, CodeType)]
    while stack:
        inner = stack.pop()
        names.update(inner.co_names)
        stack += [c for c in inner.co_consts if isinstance(c, CodeType)]
    return frozenset(names)
