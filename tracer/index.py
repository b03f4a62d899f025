"""The SQL side of a trace: one DuckDB in memory that knows its tables, and index.duckdb, the same for others.

A DuckDB file cannot be opened while another process writes it, so nobody holds one open for writing while a run goes
on. A reader has an in-memory DuckDB that takes over each sealed segment once (or all that index.duckdb has, which it
attaches read-only) and the open tails anew as they grow. index.duckdb is built under another name and put in its place
by a rename.
Room: tracer. May touch: reads the trace it is given; `build` writes its index.duckdb.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import xxhash

from tracer import addenda, segments, tables, views
from tracer.errors import DamageError, RewindError, UsageError, WriteError
from tracer.shard import MOST_BYTES
from tracer.views import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tracer.chain import Chain
    from tracer.sealed_segment import SealedSegment
    from tracer.segments import Key

_CONFIG = {
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": f"{MOST_BYTES >> 20}MiB",
    "temp_directory": "",  # what does not fit into memory is refused, not written beside the user's files
}
VERSION = 3
"""Of the tables in index.duckdb; an index of another version is not used, and built anew."""
_MADE_OF = dict.fromkeys(("steps", "all_steps", "metrics", "sessions"), ("steps",)) | {
    "epochs": ("steps", "epochs"),
    "branches": (),
    "captures": ("captures", "steps"),
    **{name: (name,) for name in ("features", "keyframes", "events")},
}
"""The tables that each view is made of."""
_HIDING = ("query", "query_table")
"""Functions that take the names of tables as text."""
_INNER = ("_", "sealed_", "tail_", "own_", "elder_")
_WORD = re.compile(r"\w+")
_PLAIN = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'idx' AND schema_name = 'main'"
_EXPLAIN = re.compile(r"(?is)\s*explain\s+(analyze\s+)?(\([^()]*\)\s*)?")
_TOGETHER = 64
"""So many segments are read before their rows are handed over."""


class Index:
    """One in-memory DuckDB over one trace, locked down: a query sees the trace and nothing else."""

    def __init__(self, chain: Chain) -> None:
        """Over the segments of `chain`; call `refresh` before the first query."""
        self._chain = chain
        self.seen: Any = None
        """What the tables were last made of."""
        self._lock = threading.Lock()
        self._local = threading.local()
        self._columns = {name: tables.Columns(schema.names) for name, schema in tables.SCHEMAS.items()}
        self._schemas = _first_schemas()
        """{table of the database: its columns}, of those that grow."""
        self._taken: set[str] = set()
        self._learned: set[str] = set()
        self._tails: dict[Key, int] = {}
        """{open segment: how many of its records the tables have}."""
        self._defined: Any = None
        self._attached: set[str] | None = None
        """The segments that index.duckdb has; None where it is not used."""
        self._damaged: dict[str, str] = {}
        """{table: what of it cannot be read}."""
        self._connection = duckdb.connect(config=_CONFIG)
        self._prepare()

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("SET python_enable_replacements = false")
        # In Jupyter without ipywidgets it is off, and to say so is refused.
        if execute("SELECT current_setting('enable_progress_bar')").fetchall()[0][0]:
            execute("SET enable_progress_bar = false")
        self._attach()
        execute("SET enable_external_access = false")
        execute("SET lock_configuration = true")
        self._empty()

    def _empty(self) -> None:
        """Begin anew, with what index.duckdb gives at most."""
        self._schemas = _first_schemas()
        self._taken, self._tails, self._learned, self._defined = set(self._attached or ()), {}, set(), None
        for table, schema in self._schemas.items():
            store(self._connection, table, schema.empty_table())

    def _attach(self) -> None:
        """Take the sealed segments from index.duckdb where there is one that can be read, and says nothing else."""
        path = self._chain.path / "index.duckdb"
        if not path.exists():
            return
        try:
            self._connection.execute(f"ATTACH {quoted(str(path))} AS idx (READ_ONLY)")
            found = self._connection.execute("SELECT version, segments FROM idx.rewind_index").fetchone()
            plain = self._connection.execute(_PLAIN).fetchall()
        except duckdb.Error:
            return  # Built by another version, cut short or damaged: the Parquet segments say the same.
        # Views of a stranger's making are not asked: only tables are.
        if (
            found is not None
            and found[0] == VERSION
            and {f"sealed_{n}" for n in tables.QUERIED} <= {n for (n,) in plain}
        ):
            names = set(json.loads(found[1]))
            if names <= {segments.name_of(key) for key in self._chain.sealed}:
                self._attached = names

    def refresh(self) -> None:
        """Bring the tables up to date with the chain."""
        with self._lock:
            seen = (
                self._chain.manifest,
                tuple(self._chain.sealed),
                tuple((key, segment.count) for key, segment in self._chain.open.items()),
                tuple(addenda.files(self._chain.path)),
                addenda.arrays_changed(self._chain.path),
            )
            if seen != self.seen:
                try:
                    self._take_all()
                except duckdb.Error:
                    if self._attached is None:
                        raise
                    # index.duckdb is damaged: the Parquet segments say the same.
                    self._attached = None
                    self._empty()
                    self._take_all()
                self.seen = seen

    def _take_all(self) -> None:
        """Take what is new in one act: a segment that was sealed meanwhile is not seen twice."""
        self._connection.begin()
        try:
            self._take_sealed()
            self._take_open()
            self._define()
            self._connection.commit()
        except BaseException:
            self._connection.rollback()
            self._empty()  # what was undone is not there any more
            self.seen = None
            raise

    def _define(self) -> None:
        """Define the views, and what they stand on besides, where any of it has changed."""
        chain = self._chain
        addenda_ = (tuple(addenda.files(chain.path)), addenda.arrays_changed(chain.path))
        names = dict(self._columns["steps"].names)
        known = (chain.manifest, dict(chain.cuts), addenda_, dict(self._schemas), names, self._beside())
        if known != self._defined:
            sources = {name: [f"SELECT * FROM {place}{name}" for place in self._places()] for name in tables.QUERIED}
            _define(self._connection, chain, sources, self._columns)
            self._complete()
            self._defined = known

    def _complete(self) -> None:
        """Called when the views were defined anew: a branch adds its parent's rows here."""

    def _beside(self) -> Any:
        """What is another value when `_complete` has to be called again: of a branch, what there is of its parent."""
        return None

    def _places(self) -> list[str]:
        return [*(["idx.sealed_"] if self._attached is not None else []), "sealed_", "tail_"]

    def _take_sealed(self) -> None:
        sealed = {segments.name_of(key): segment for key, segment in self._chain.sealed.items()}
        for name in [name for name in sealed if name not in self._learned]:
            learn(self._columns, [sealed[name]])
            self._learned.add(name)
        fresh = [name for name in sealed if name not in self._taken]
        for start in range(0, len(fresh), _TOGETHER):
            some = [sealed[name] for name in fresh[start : start + _TOGETHER]]
            for name in tables.QUERIED:
                have = [segment for segment in some if name in segment.files]
                found = self._whole(name, [lambda s=s, name=name: s.open_table(name).table() for s in have])
                if found:
                    self._append(f"sealed_{name}", tables.concat(found))
        self._taken |= set(fresh)

    def _whole(self, name: str, readers: list[Callable[[], pa.Table]]) -> list[pa.Table]:
        """The parts of table `name` that can be read; where one cannot, the table is not queried any more."""
        found = []
        for read in readers:
            try:
                found.append(read())
            except DamageError as error:
                self._damaged.setdefault(name, str(error))
        return found

    def _append(self, name: str, rows: pa.Table) -> None:
        """Add rows to the table `name`, which gets the columns that it lacks."""
        schema = pa.unify_schemas([self._schemas[name], rows.schema], promote_options="permissive")
        db = self._connection
        db.register("_incoming", rows)
        if schema == self._schemas[name]:
            db.execute(f"INSERT INTO {name} BY NAME SELECT * FROM _incoming")
        else:
            both = f"SELECT * FROM {name} UNION ALL BY NAME SELECT * FROM _incoming"
            db.execute(f"CREATE OR REPLACE TABLE {name} AS {both}")
            self._schemas[name] = schema
        db.unregister("_incoming")

    def _take_open(self) -> None:
        """Add what the tails have that is new; where one was sealed, begin them anew."""
        tails = self._chain.open
        if not self._tails.keys() <= tails.keys():
            self._tails = {}
            for name, schema in tables.SCHEMAS.items():
                self._schemas[f"tail_{name}"] = schema
                store(self._connection, f"tail_{name}", schema.empty_table())
        spans = [(key, self._tails.get(key, 0), tail.count) for key, tail in tails.items()]
        grown = [span for span in spans if span[1] < span[2]]
        for name, columns in self._columns.items():
            readers = [partial(tails[key].rows, name, columns, since, until) for key, since, until in grown]
            found = [rows for rows in self._whole(name, readers) if len(rows)]
            if found:
                self._append(f"tail_{name}", tables.concat(found))
        self._tails |= {key: until for key, _, until in grown}

    def query(self, query: str, params: Any = None) -> duckdb.DuckDBPyRelation:
        """Return the answer to `query`, one statement that reads. Raise UsageError."""
        try:
            statements = self._connection.extract_statements(query)
            if len(statements) != 1 or not self._reads(statements[0]):
                raise UsageError("one statement that reads, please: SELECT, WITH, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN")
            self._check_whole(query)
            relation = self._cursor().sql(query, params=params)
        except duckdb.Error as error:
            raise UsageError(_one_line(error)) from None
        if relation is None:
            raise UsageError("the query returned nothing")
        return relation

    def _check_whole(self, query: str) -> None:
        """Raise DamageError where `query` asks a table of which part is damaged: its answer would be another's."""
        if self._damaged:
            asked = set(_WORD.findall(query.lower()))
            known = set().union(*(made for view, made in _MADE_OF.items() if view in asked))
            hidden = not asked.isdisjoint(_HIDING) or any(word.startswith(_INNER) for word in asked)
            for name, said in self._damaged.items():
                if hidden or name in known:
                    raise DamageError(said, path=self._chain.path)

    def _reads(self, statement: duckdb.Statement) -> bool:
        """Whether it changes nothing: EXPLAIN ANALYZE runs what it explains."""
        if statement.type != duckdb.StatementType.EXPLAIN:
            return statement.type == duckdb.StatementType.SELECT
        found = _EXPLAIN.match(statement.query)
        inner = self._connection.extract_statements(statement.query[found.end() :]) if found else []
        return len(inner) == 1 and inner[0].type == duckdb.StatementType.SELECT

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """What the calling thread asks inside, and reads of the answers, is stopped after `seconds`. Raise UsageError."""
        timer = threading.Timer(seconds, self._cursor().interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        except duckdb.InterruptException:
            raise UsageError(f"the query took more than {seconds:g} s and was stopped: ask for less") from None
        finally:
            timer.cancel()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of the calling thread's own: DuckDB's are not to be shared."""
        if not hasattr(self._local, "cursor"):
            self._local.cursor = self._connection.cursor()
        return self._local.cursor

    def views(self) -> tuple[str, ...]:
        """The views that there are."""
        return views.VIEWS

    def schema(self) -> dict[str, dict[str, str]]:
        """{view: {column: type}}."""
        described = {view: self.query(f"SELECT * FROM {view} LIMIT 0") for view in self.views()}
        return {view: {c: str(t) for c, t in zip(r.columns, r.types, strict=True)} for view, r in described.items()}

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def _first_schemas() -> dict[str, pa.Schema]:
    return {f"{kind}_{name}": schema for kind in ("sealed", "tail") for name, schema in tables.SCHEMAS.items()}


def learn(columns: dict[str, tables.Columns], sealed: Iterable[SealedSegment]) -> None:
    """Take over the names that the columns of `steps` and `features` have in sealed segments."""
    for segment in sealed:
        for name, known in segment.columns_of.items():
            columns[name].learn(known)


def _late_known(trace: Path) -> pa.Table:
    if addenda.arrays_changed(trace) is None:
        return addenda.ARRAYS.empty_table()
    from tracer import late  # noqa: PLC0415 -- loads torch: most traces are sealed without

    return late.table(trace)


def _define(
    db: duckdb.DuckDBPyConnection,
    chain: Chain,
    sources: dict[str, list[str]],
    named: dict[str, tables.Columns],
) -> None:
    """Define all views over `sources`: {table: the SELECTs whose rows are its rows}."""
    store(db, "sessions_known", views.session_table(chain))
    store(db, "branches_known", views.branch_table(chain))
    verdicts = addenda.verdicts(chain.path)
    store(db, "verdicts_known", verdicts)
    store(db, "hindsight_known", addenda.hindsight(chain.path))
    store(db, "late_known", _late_known(chain.path))
    for name, selects in sources.items():
        db.execute(f"CREATE OR REPLACE VIEW _{name} AS {' UNION ALL BY NAME '.join(selects)}")
    columns = db.execute("SELECT * FROM _steps LIMIT 0").description or []
    scalars = [c[0] for c in columns if c[0] not in views.BASE_COLUMNS]
    logged = {column: name for name, column in named["steps"].names.items()}
    for statement in views.view_statements(scalars, logged, cut=bool(chain.cuts), judged=len(verdicts) > 0):
        db.execute(statement)


def build(chain: Chain) -> Path:
    """Fold all sealed segments into index.duckdb, under another name first. Raise WriteError, DamageError.

    Any DuckDB opens it: tables and views are those of `trace.sql`.
    """
    path = chain.path / "index.duckdb"
    temporary = path.with_name(f".index.duckdb.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(temporary)) as db:
            _fill(db, chain)
        os.replace(temporary, path)
    except (duckdb.Error, OSError) as error:
        raise WriteError(f"{path} could not be built: {_one_line(error)}", path=path) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_fresh(chain: Chain) -> bool:
    """Whether index.duckdb says all that the sealed segments, trace.json and the addenda say."""
    path = chain.path / "index.duckdb"
    if not path.exists():
        return False  # else DuckDB takes its time to say so
    names = sorted(segments.name_of(key) for key in chain.sealed)
    try:
        with duckdb.connect(str(path), read_only=True) as db:
            found = db.execute("SELECT version, segments, facts FROM rewind_index").fetchone()
    except duckdb.Error:
        return False
    return found == (VERSION, json.dumps(names), _facts(chain))


def _facts(chain: Chain) -> str:
    """What the index holds besides segments, in short: sessions and their ends, the parent, the addenda."""
    said = (chain.manifest.sessions, chain.manifest.parent, [file.name for file in addenda.files(chain.path)])
    return xxhash.xxh3_64_hexdigest(repr(said).encode())


def _fill(db: duckdb.DuckDBPyConnection, chain: Chain) -> None:
    db.execute("BEGIN")  # one for all: each waits for the disk
    for name, schema in tables.SCHEMAS.items():
        store(db, f"sealed_{name}", schema.empty_table())
        files = _parquet_files(chain, name)
        if files:
            # DuckDB reads them itself, side by side; what it makes is for others, `trace.sql` checks sums.
            scan = f"SELECT * FROM read_parquet([{', '.join(map(quoted, files))}], union_by_name = true)"
            order = "" if name == "epochs" else " ORDER BY session, step"
            both = f"SELECT * FROM sealed_{name} UNION ALL BY NAME {scan}"
            db.execute(f"CREATE OR REPLACE TABLE sealed_{name} AS SELECT * FROM ({both}){order}")
    named = {name: tables.Columns(schema.names) for name, schema in tables.SCHEMAS.items()}
    learn(named, chain.sealed.values())
    _define(db, chain, {name: [f"SELECT * FROM sealed_{name}"] for name in tables.QUERIED}, named)
    db.execute("CREATE TABLE rewind_index (version INTEGER, segments VARCHAR, facts VARCHAR)")
    names = sorted(segments.name_of(key) for key in chain.sealed)
    db.execute("INSERT INTO rewind_index VALUES (?, ?, ?)", [VERSION, json.dumps(names), _facts(chain)])
    db.execute("COMMIT")
    db.execute("CHECKPOINT")


def _parquet_files(chain: Chain, name: str) -> list[str]:
    folder = chain.path.resolve() / "metrics"
    keys = [key for key, segment in chain.sealed.items() if name in segment.files]
    return [str(folder / f"{segments.name_of(key)}.{name}.parquet") for key in keys]


def store(db: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Make `table` the table `name`: a copy that all connections of the database see."""
    db.register("_incoming", table)
    db.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM _incoming")
    db.unregister("_incoming")


def worded(error: duckdb.Error, path: Path) -> RewindError:
    """What DuckDB said while it read an answer about the trace at `path`, as an error of ours, in one line."""
    said = str(error).partition("\n\n")[0]
    if "Corrupt database" in said or "Could not read" in said:
        return DamageError(
            f"{path / 'index.duckdb'} is damaged: `rewind repair {path}` builds it anew ({said})", path=path
        )
    return UsageError(" ".join(said.split()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
