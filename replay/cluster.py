"""Dask's workers: of this machine, or of a cluster somewhere else, which must have Rewind and see the trace. # B3, B9

What goes wrong there is said in one line: nobody listens, no worker is there or left, one lacks Rewind or the trace.
Room: replay. May touch: a cluster of its own in this process, or the one whose address it is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import tempfile
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distributed import Client

CONNECTING = float(os.environ.get("REWIND_DASK_PATIENCE", "10"))
"""So many seconds a scheduler has to answer, and its first worker to be there."""
ALONE = 3 * CONNECTING
"""So many seconds a cluster may be without a worker (a nanny starts a new one)."""
_LOOK = 1.0


@contextlib.contextmanager
def client_of(workers: int, scheduler: str | None, trace: Path, needed: str) -> Iterator[Client]:
    """A client of `workers` workers here, or of the cluster at `scheduler`, where `needed` (module:name) can be had.

    Raise UsageError.
    """
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            yield stack.enter_context(_local(workers))
        else:
            client = stack.enter_context(_far(scheduler))
            _prove(client, scheduler, trace, needed)
            yield client


@contextlib.contextmanager
def _local(workers: int) -> Iterator[Client]:
    from distributed import Client, LocalCluster  # noqa: PLC0415  takes a second to import

    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="rewind-dask-"))
        # Workers in threads: each only waits for an engine, which is a process and does the work. As processes they
        # would load torch once more each, and start a nursery each, which loads it again.
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=None,
            local_directory=scratch,
            silence_logs=40,
        )
        stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster))


@contextlib.contextmanager
def _far(scheduler: str) -> Iterator[Client]:
    from distributed import Client  # noqa: PLC0415  takes a second to import

    with _quiet():
        try:
            client = Client(scheduler, timeout=CONNECTING)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {scheduler}: {error}") from None
        try:
            yield client
        finally:
            with contextlib.suppress(OSError, TimeoutError, CancelledError):
                client.close(timeout=CONNECTING)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Dask logs of connections that fail is said in our words."""
    before = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _prove(client: Client, scheduler: str, trace: Path, needed: str) -> None:
    """Each worker can do the work. Asked by functions of Python's own: one of ours ends a worker that lacks it."""
    try:
        client.wait_for_workers(1, timeout=CONNECTING)
    except (OSError, TimeoutError):
        raise UsageError(f"the Dask scheduler at {scheduler} has no workers: start one (`dask worker`)") from None
    for worker, found in client.run(pkgutil.resolve_name, needed, on_error="return").items():
        if isinstance(found, (ImportError, AttributeError)):
            why = f"{type(found).__name__}: {found}"
            raise UsageError(f"the Dask worker {worker} has no Rewind like this one ({why}): install it there")
    for worker, found in client.run(os.path.isfile, str(trace / "trace.json"), on_error="return").items():
        if found is False:  # not where the worker has ended meanwhile
            raise UsageError(
                f"the Dask worker {worker} does not see {trace}: the trace must lie at that path there, too"
            )


def answers(client: Client, scheduler: str | None, function: Callable[..., Any], rows: list[tuple]) -> Iterator[Any]:
    """What `function` says of each row, as they come. Raise UsageError where the cluster is lost, and what it raises."""
    from distributed.scheduler import KilledWorker  # noqa: PLC0415  takes a second to import

    kept = "what was answered is kept, ask again to go on"
    left = {client.submit(function, *row, pure=False) for row in rows}
    seen = time.monotonic()
    while left:
        try:
            for job in _finished(left):
                left.discard(job)
                yield job.result()
                seen = time.monotonic()
            if scheduler is None or client.scheduler_info()["workers"]:
                seen = time.monotonic()
        except KilledWorker:
            raise UsageError(f"the Dask workers at {scheduler} were killed over and over: {kept}") from None
        except (ConnectionError, TimeoutError, CancelledError) as error:
            raise UsageError(f"the Dask scheduler at {scheduler} is gone ({type(error).__name__}): {kept}") from None
        if time.monotonic() - seen > ALONE:
            raise UsageError(f"the Dask scheduler at {scheduler} has no workers any more: {kept}")


def _finished(jobs: set[Any]) -> list[Any]:
    """Those that are done, after a moment at the latest. Raise CancelledError where the scheduler is lost."""
    from distributed import wait  # noqa: PLC0415  as above

    with contextlib.suppress(TimeoutError):
        return list(wait(list(jobs), timeout=_LOOK, return_when="FIRST_COMPLETED").done)
    return []


def everywhere(client: Client, function: Callable[[], None]) -> None:
    """Run `function` in each worker, as far as they are still there."""
    with contextlib.suppress(OSError, TimeoutError, CancelledError, ValueError):
        client.run(function, on_error="ignore")
