"""How reading a trace grows with the length of its run: opening, a step's record, states, rows, SQL, at 1e3 to 1e6 steps.

    python -m tests.benchmarks.growth [--quick] [--out FOLDER]

The traces are synthetic, sealed and indexed; a fit over the lengths gives each figure's exponent: 0 is flat, 1 is
proportional. Each is measured in this process after one warm-up, files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tracer
from tests.benchmarks.figures import Figure, exponent, figure, p95, table, timed
from tests.tracer.synthetic import make_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tracer.trace import Trace

LENGTHS = (1000, 10_000, 100_000, 1_000_000)
WEIGHT = "encoder.weight"
SERIES = "select step // {width} as place, min({column}), max({column}) from {view} group by place order by place"
Grown = dict[str, dict[int, float]]
"""{figure: {steps: median}}."""


def milliseconds(acts: Iterable[Callable[[], Any]]) -> list[float]:
    """What each of `acts` takes, in ms."""
    return [1000 * timed(act) for act in acts]


def places(trace: Trace, count: int, margin: int = 0) -> list[int]:
    """Random steps, the same ones each time."""
    return np.random.default_rng(0).integers(0, max(1, trace.steps - margin), count).tolist()


def scalars(path: Path, steps: int) -> Iterator[Figure]:
    """A run of which only scalars and replay data are kept."""
    make_trace(path, steps=steps, features=4, inputs=4, weights=False, captures=False, roll=2048, remember=False)
    tracer.open_trace(path).close()
    target = "300" if steps == 10**6 else ""
    yield figure("open", "ms", milliseconds([lambda: tracer.open_trace(path).close()] * 9), target)
    with tracer.open_trace(path) as trace:
        first = timed(lambda: trace.sql("select count(*) from steps").fetchall())
        yield figure("the first question in SQL", "ms", [1000 * first])
        yield figure("a step's record", "ms", milliseconds(lambda k=k: trace.record(k) for k in places(trace, 40)))
        questions = {
            "a series as minimum and maximum of 2000 pieces, SQL": SERIES.format(
                width=max(1, steps // 2000), column="loss", view="steps"
            ),
            "a hundred steps, SQL": f"select * from steps where step between {steps // 2} and {steps // 2 + 99}",
            "the first step of a condition, SQL": "select min(step) from steps where accuracy > 0.9",
        }
        for name, query in questions.items():
            yield figure(name, "ms", asked(trace, query))


def asked(trace: Trace, query: str) -> list[float]:
    """What a question takes, again and again."""
    trace.sql(query).fetchall()
    return milliseconds([lambda: trace.sql(query).fetchall()] * 9)


def states(path: Path, steps: int, *, features: int, inputs: int, roll: int) -> Iterator[Figure]:
    """A run with weights at every step."""
    make_trace(path, steps=steps, features=features, inputs=inputs, captures=False, roll=roll, remember=False)
    with tracer.open_trace(path) as trace:
        trace.state(steps // 2)
        took = milliseconds(lambda k=k: trace.state(k) for k in places(trace, 200))
        yield figure("a stored state", "ms", took)
        yield p95("a stored state", "ms", took, "2")
        for length, target in ((256, "10"), (10_000, "150")):
            if length <= steps:
                yield figure(f"a weight row over {length} steps", "ms", rows_over(trace, length), target)


def rows_over(trace: Trace, length: int) -> list[float]:
    """What a feature's weights over `length` steps take, somewhere in the run."""
    starts = places(trace, 9, length)
    return milliseconds(lambda a=a: trace.weights(WEIGHT, rows=3, steps=range(a, a + length)) for a in starts)


def values(path: Path, steps: int) -> Iterator[Figure]:
    """Captured vectors of 64 features: 512 values a step, up to 100 million."""
    make_trace(path, steps=steps, features=64, inputs=4, weights=False, roll=2048, remember=False)
    with tracer.open_trace(path) as trace:
        questions = {
            "downsampled series": SERIES.format(width=steps // 2000, column="win_rate", view="features"),
            "one feature's trajectory": "select step, win_rate from features where feature = 7 order by step",
            "first step of a condition": "select min(step) from features where feature = 7 and win_rate < 0.01",
        }
        for name, query in questions.items():
            target = "30" if steps <= 20_000 else "300"
            yield figure(f"SQL over {512 * steps / 1e6:.0f} million values: {name}", "ms", asked(trace, query), target)


def growth(folder: Path, *, quick: bool) -> list[Figure]:
    """All of it: each figure at each length, then its exponent."""
    rows: list[Figure] = []
    grown: Grown = defaultdict(dict)
    for steps in LENGTHS[:2] if quick else LENGTHS:
        found = list(_kept_for(folder / "run", partial(scalars, steps=steps)))
        rows += _named(found, "", steps, grown)
    for steps in LENGTHS[:2] if quick else LENGTHS[:3]:
        # States of 4 KB: a thousand thousand of 200 KB are more than a disk should be asked for here.
        found = list(_kept_for(folder / "run", partial(states, steps=steps, features=16, inputs=64, roll=2048)))
        rows += _named(found, "states of 4 KB, ", steps, grown)
    for name, of_size in grown.items():
        if len(of_size) > 1:
            slope = exponent(list(of_size), list(of_size.values()))
            rows.append(Figure(f"growth of: {name}", "exponent", slope, slope, slope, "flat or logarithmic"))
    steps = 2560 if quick else 12_800
    found = list(_kept_for(folder / "run", partial(states, steps=steps, features=64, inputs=784, roll=256)))
    rows += _named(found, "states of 200 KB, ", steps, defaultdict(dict))
    for steps in (4000,) if quick else (20_000, 200_000):
        rows += _kept_for(folder / "run", partial(values, steps=steps))
    return rows


def _named(found: list[Figure], size: str, steps: int, grown: Grown) -> list[Figure]:
    for row in found:
        grown[row.name][steps] = row.median
    return [replace(row, name=f"{row.name}, {size}{steps} steps") for row in found]


def _kept_for(path: Path, measure: Callable[[Path], Iterator[Figure]]) -> Iterator[Figure]:
    """Measure on a trace that is removed afterwards: the longest take gigabytes."""
    try:
        for row in measure(path):
            print(table([row]).splitlines()[-1], file=sys.stderr)
            yield row
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Measure, print the table, keep both forms in the folder asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 steps")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = growth(Path(name), quick=options.quick)
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.md").write_text(f"{machine}\n\n{table(rows)}\n")
    (options.out / "growth.json").write_text(
        json.dumps({"machine": machine, "figures": [asdict(r) for r in rows]}, indent=1)
    )
    print(f"{machine}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
