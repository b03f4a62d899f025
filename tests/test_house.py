"""The house rules, kept by machine: see pyproject.toml for the settings of ruff and import-linter."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOMS = ("tracer", "replay", "analysis", "apps")
MODULES = sorted(path for room in ROOMS for path in (HOUSE / room).rglob("*.py"))
LONGEST_MODULE = 500
WIDEST_FACE = 10
# Where a developer's files lie, and where packages come from, is nobody's business but their own machine's.
MACHINE = re.compile(
    r"/(home|root|Users|opt|work|mnt|srv)/\w|pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\."
)


def _name(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["check", "format"])
def test_ruff(arguments):
    done = _run(sys.executable, "-m", "ruff", *arguments, "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_who_imports_whom():
    done = _run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_is_short_and_names_its_room(path):
    source = path.read_text("utf-8")
    assert source.count("\n") <= LONGEST_MODULE
    doc = ast.get_docstring(ast.parse(source)) or ""
    room = _name(path).partition("/")[0]
    if path.name != "__init__.py":
        assert re.search(rf"room: {room}", doc, re.IGNORECASE), (
            "the docstring says `Room: <room>` and what may be touched"
        )


@pytest.mark.parametrize("room", ROOMS)
def test_face_is_small_sorted_and_there(room):
    face = importlib.import_module(room)
    names = list(getattr(face, "__all__", []))
    assert names == sorted(names)
    assert len(names) <= WIDEST_FACE
    for name in names:
        assert callable(getattr(face, name)), f"{room}.{name} is not the thing but its module"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_all_is_sorted(path):
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert list(names) == sorted(names)


def test_no_module_hides_a_name_of_its_face():
    code = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.iter_modules(room.__path__):
    if module.name in room.__all__:
        importlib.import_module(f"{room.__name__}.{module.name}")
print(*[name for name in room.__all__ if not callable(getattr(room, name))])
"""
    for room in ROOMS[:2]:
        done = _run(sys.executable, "-c", code, room)
        assert (done.stdout, done.stderr) == ("\n", "")


def test_importing_costs_nothing():
    heavy = "torch numpy pandas pyarrow duckdb zarr panel rich dask"
    code = f"import sys, tracer, replay, apps.cli; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    done = _run(sys.executable, "-W", "error", "-c", code)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_only_a_nursery_loads_dynamo():
    """It takes longer than torch itself; the first optimizer of a process loads it, one made for a constant as well."""
    code = "import sys, tracer.recorder, replay.session, apps.api; print('torch._dynamo' in sys.modules)"
    done = _run(sys.executable, "-c", code)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_every_module_is_on_the_map():
    text = (HOUSE / "README.md").read_text("utf-8")
    shown = set(re.findall(r"^- `([\w/]+\.py)`", text, re.MULTILINE))
    there = {_name(path) for path in MODULES if path.name != "__init__.py"}
    assert shown - there == set(), "the README's map shows modules that are not there"
    assert there - shown == set(), "modules that the README's map lacks"


def test_no_file_knows_this_machine():
    ours = [
        HOUSE / name for name in ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", ".ci/run", ".gitignore")
    ]
    ours += [path for room in (*ROOMS, "tests") for path in (HOUSE / room).rglob("*") if path.suffix in TEXT]
    found = [
        f"{_name(path)}:{number}: {line.strip()}"
        for path in ours
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert found == []


TEXT = {".py", ".md", ".js", ".css", ".json", ".toml", ".html", ".txt", ".sh"}
