"""Errands: done in order, the latest of each kind, and all of them before the end."""

from __future__ import annotations

import os
import threading

import pytest

from tracer.errands import Errands


def test_in_order_and_only_the_latest_of_a_kind():
    errands, done, held = Errands(), [], threading.Event()
    errands.run("first", held.wait)
    for i in range(5):
        errands.run("status", lambda i=i: done.append(i))
    errands.run("sync", lambda: done.append("sync"))
    held.set()
    errands.finish()
    assert done == [4, "sync"]
    errands.close()


def test_close_does_what_is_left_and_leaves_no_thread():
    before = threading.active_count()
    errands, done, held = Errands(), [], threading.Event()
    errands.run("first", held.wait)
    errands.run("second", lambda: done.append(2))
    closing = threading.Thread(target=errands.close)
    closing.start()
    held.set()
    closing.join()
    assert done == [2]
    assert threading.active_count() == before


def test_after_the_end_and_without_errands():
    errands, done = Errands(), []
    errands.finish()
    errands.close()
    errands.run("late", lambda: done.append(1))
    assert done == [1]


def test_a_forked_child_does_it_itself(tmp_path):
    errands = Errands()
    errands.run("first", lambda: None)
    errands.finish()
    child = os.fork()
    if not child:
        errands.run("mark", (tmp_path / "mark").touch)
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "mark").exists()
    errands.close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_signal_in_the_midst_of_handing_over_an_errand_does_not_wait_for_ever(monkeypatch, busy):
    """SIGTERM ends a recording in its handler: what it interrupted holds the lock that the thread needs.

    The end of a recording hands over errands of its own, and waits for them, before it ends the thread.
    """
    errands, done, held = Errands(), [], threading.Event()
    errands.run("first", held.wait if busy else held.set)
    notify = errands._changed.notify_all

    def interrupted():
        monkeypatch.setattr(errands._changed, "notify_all", notify)
        notify()
        held.set()
        errands.run("status", lambda: done.append("status"))
        errands.finish()
        errands.run("sync", lambda: done.append("sync"))
        errands.close()

    monkeypatch.setattr(errands._changed, "notify_all", interrupted)
    caller = threading.Thread(target=lambda: errands.run("second", lambda: done.append("second")), daemon=True)
    caller.start()
    caller.join(20)
    assert not caller.is_alive()
    assert done == ["second", "status", "sync"]
