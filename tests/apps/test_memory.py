"""What the app frees goes back: garbage is looked for when a page rests and after it has closed."""

from __future__ import annotations

import gc
import threading
import weakref

from apps import memory, viewer
from apps.runs import Runs
from tests.tracer.synthetic import make_trace


class Ring:
    """Garbage that only a search finds."""

    def __init__(self) -> None:
        self.me = self


def test_garbage_of_a_page_is_looked_for_when_it_rests(monkeypatch):
    # Looked for, not found: pages of tests before this one may be searching in threads of their own, and a second search
    # at a time finds nothing.
    searched = []
    monkeypatch.setattr(memory.gc, "collect", lambda: searched.append(threading.current_thread()))
    memory.give_back()
    assert threading.current_thread() in searched


def test_what_was_there_when_the_app_began_is_searched_no_more():
    before, kept = gc.get_freeze_count(), Ring()
    try:
        memory.settled()
        assert gc.get_freeze_count() > before
        assert not any(one is kept for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_when_a_page_has_closed_its_memory_is_given_back(tmp_path, monkeypatch):
    make_trace(tmp_path / "run", 3, 4, 4)
    told = []
    monkeypatch.setattr(viewer, "give_back_later", lambda *seconds: told.append(seconds))
    page = viewer.Viewer(Runs([tmp_path / "run"]))
    page._moved = -1e9
    page._beat()
    page._beat()
    assert told == [(0,)]  # once for each rest
    page.close()
    assert told == [(0,), ()]


def test_what_a_document_calls_at_each_beat_holds_no_page():
    class Page:
        beats = 0

        def _beat(self):
            Page.beats += 1

        def _together(self, work):
            work()

    page = Page()
    beat, gone = viewer.beating(weakref.ref(page)), weakref.ref(page)
    beat()
    del page
    assert gone() is None
    beat()
    assert Page.beats == 1


def test_of_a_run_that_no_page_shows_nothing_that_was_read_is_held(tmp_path):
    make_trace(tmp_path / "t", steps=40, features=4, inputs=6, roll=16)
    runs = Runs([tmp_path / "t"])
    try:
        (name,) = runs.names
        trace = runs.open(name).trace
        before = trace.weights("encoder.weight")[1]
        captured = trace.captures["layer/som_targets"][7] if "layer/som_targets" in trace.captures else trace.batch(7)
        assert captured is not None
        assert trace._chain.arrays.kept.size > 0
        runs.let_go([trace.path])
        assert trace._chain.arrays.kept.size == 0
        assert (trace.weights("encoder.weight")[1] == before).all()
    finally:
        runs.close()
