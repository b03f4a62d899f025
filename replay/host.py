"""Where an engine lives: a process of its own for scripts and modules, a thread for a function.

`nursery` forks the process and calls `main` there.
Room: replay. May touch: this process (environment flags, working copy); a crash of user code ends this process and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import fence
from replay.causes import Context
from replay.channel import Channel
from replay.engine import StopProgram
from replay.file_view import FileView
from replay.sandbox import Sandbox
from replay.timeline import Span
from replay.watching import WatchingEngine
from tracer import active, beside, compiled, environment, files, frames, hooks, manifest, program, rng, stdin
from tracer.branched import find_parent
from tracer.errors import RewindError
from tracer.past import Past
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.engine import Engine


def run_program(
    trace: Trace, channel: Channel, options: dict[str, Any], body: Callable[[], None], sandbox: Sandbox | None = None
) -> None:
    """Run `body` under an engine that obeys `channel`; every way for it to end is told there. `sandbox` is around it."""
    span = Span(options["session"], options["first"], options["end"])
    context = Context(**options["context"])
    trace.hold_samples()
    engine = _kind(options.get("kind"))(trace, channel, span, context, hurry=options["hurry"], stay=options["stay"])
    engine.sandbox = sandbox
    try:
        with contextlib.suppress(StopProgram):
            engine.prelude()
            engine.ended(_outcome(engine, trace, span, body))
    finally:
        channel.close()  # whoever waits for an answer learns that there will be none


def _outcome(engine: Engine, trace: Trace, span: Span, body: Callable[[], None]) -> dict[str, Any]:
    """Run `body` to its end and return what it was; being stopped passes through."""
    try:
        with hooks.installed(engine.boundary, thread=threading.get_ident()):
            before = active.set_listener(engine)
            try:
                _start_like(trace, span.session)
                _to_the_end(engine, body)
            finally:
                active.set_listener(before)
    except StopProgram:
        raise
    except SystemExit as exit_:
        return {"error": "ended", "detail": f"the program called sys.exit({exit_.code})"}
    except BaseException as error:  # noqa: BLE001  whatever user code raises is its answer
        text = "".join(traceback.format_exception(error))
        refused = isinstance(error, PermissionError) or "Permission denied" in str(error)
        why = " (a replay may write only to its scratch folder)" if refused else ""
        return {"error": "raised", "detail": f"{type(error).__name__}: {error}{why}", "traceback": text}
    return {"error": "ended", "detail": "the program ended"}


def _to_the_end(engine: Engine, body: Callable[[], None]) -> None:
    """Run `body`; the step that is open when it ends is over, as it was when it was recorded."""
    try:
        body()
    except SystemExit as exit_:
        if not exit_.code:
            engine.finish()
        raise
    engine.finish()


def _kind(name: str | None) -> type[Engine]:
    """The engine that can do what is wanted; each further ability is imported only where it is."""
    if name == "observing":
        from replay.observing import ObservingEngine  # noqa: PLC0415  as said

        return ObservingEngine
    if name == "branching":
        from replay.branching import BranchingEngine  # noqa: PLC0415  as said

        return BranchingEngine
    return WatchingEngine


def _start_like(trace: Trace, session: int) -> None:
    seed = trace.manifest.sessions[session].seed
    if seed is not None:
        rng.restore_portable(seed)


class RecordedImports:
    """Imports the program's own modules as they were when it was recorded, under the names and places they had."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        """`read` gives the recorded text of a file."""
        self._read = read

    def install(self) -> None:
        """From now on imports of recorded files take the recorded text."""
        import importlib.machinery as machinery  # noqa: PLC0415  needed in an engine's process alone

        read = self._read
        original = machinery.SourceFileLoader.get_code

        def get_code(loader: Any, fullname: str) -> Any:
            text = read(loader.get_filename(fullname))
            if text is None:
                return original(loader, fullname)
            return compile(text, loader.get_filename(fullname), "exec", dont_inherit=True)

        machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _no_source(file: str) -> bytes | None:
    return None


def _sources(trace: Trace, options: dict[str, Any]) -> Callable[[str], bytes | None]:
    """What is run for each file: the recorded text, or what lies on the disk, or another script in the program's place."""
    read = _no_source if options["context"]["current_source"] else Past(trace).source
    script = options.get("script")
    if script is None:
        return read
    text = Path(script).read_bytes()
    return lambda file: text if file == trace.manifest.program.path else read(file)


def _compiler_cache() -> list[str]:
    """What inductor compiled for the recording it need not compile anew; under the scratch folder it would be."""
    folder = compiled.cache_folder()
    if not os.path.isdir(folder):
        return []
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    return [folder]


def _read_by_the_parent(trace: Trace) -> list[str]:
    """The files that a branch's program reads after it has written them: a branch has no log of them."""
    parent = trace.manifest.parent
    if parent is None:
        return []
    with contextlib.suppress(RewindError):
        place = find_parent(trace.path, parent)
        sessions = manifest.read(place).sessions
        events = files.events(place, sessions[-1].session)[1] if sessions else []
        return sorted({event[1] for event in events if event[0] == "r"})
    return []


def _give_input(trace: Trace, options: dict[str, Any]) -> bool:
    """Give the program its standard input again; return whether it is whole. What others have changed is not given."""
    session = trace.manifest.sessions[options["session"]]
    own = {files.log_file(trace.path, session.session).name, files.stdin_file(trace.path, session.session).name}
    return not own & beside.changed(trace.path, session) and stdin.give(
        trace.path, session.session, Path(options["scratch"])
    )


def main(arguments: list[str]) -> None:
    """Serve one program until it is closed."""
    descriptor, path, text = int(arguments[0]), Path(arguments[1]), arguments[2]
    options = json.loads(text)
    channel = Channel(Connection(descriptor))
    writable = [*options.get("writable", ()), *_compiler_cache()]
    # The cache the fence allows by its name: of what is yet to be made it must allow the folder around it.
    fence.put_up(Path(options["scratch"]), options.get("writable", ()))
    with open_trace(path) as trace:
        facts = trace.manifest
        environment.restore(facts.environment)
        read = _sources(trace, options)
        RecordedImports(read).install()
        recorded = replace(facts.program, argv=facts.sessions[options["session"]].argv)
        view = FileView(trace, options["session"])
        for file in _read_by_the_parent(trace):
            view.doubt(file, "what a branch's run wrote is not kept for its replay")
        sandbox = Sandbox(Path(options["scratch"]), writable, view)
        os.chdir(recorded.cwd)
        frames.add_program_folder(os.path.dirname(recorded.path or "."))
        if not _give_input(trace, options):
            view.doubt("standard input", "what was kept of it in the trace is damaged or missing")
        with sandbox.entered():
            run_program(trace, channel, options, lambda: program.run(recorded, read), sandbox)
    os._exit(0)  # threads and workers of the program do not hold up its end


if __name__ == "__main__":
    main(sys.argv[1:])
