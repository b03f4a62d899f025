"""The gate between two steps, with threads for the clients."""

from __future__ import annotations

import threading

import pytest

from tracer.errors import UsageError
from tracer.gate import HAND, Gate, Stopped


class Trainer(threading.Thread):
    """Passes the gate for so many steps; notes how the loop ended."""

    def __init__(self, gate: Gate, steps: int) -> None:
        super().__init__(daemon=True)
        self.gate, self.steps, self.made, self.ended = gate, steps, 0, ""
        self.start()

    def run(self) -> None:
        try:
            for step in range(1, self.steps + 1):
                self.made = step
                self.gate.passing(step)
            self.ended = "finished"
        except Stopped:
            self.ended = "stopped"

    def result(self) -> str:
        self.join(20)
        return self.ended


def test_pause_at_then_steps_then_resume():  # S4.1
    gate = Gate(pause_at=5)
    trainer = Trainer(gate, 20)
    gate.settle(20)
    # Not yet held: `settle` returns at once where nobody wants to hold, so wait for the gate's own word.
    while gate.status != "paused":
        assert trainer.is_alive()
    assert (gate.step, trainer.made, gate.by_hand) == (5, 5, True)
    gate.grant()
    gate.settle(20)
    assert (gate.step, gate.status) == (6, "paused")
    gate.grant(3)
    gate.settle(20)
    assert (gate.step, gate.status) == (9, "paused")
    gate.resume()
    assert trainer.result() == "finished"


def test_three_clients_grant_at_once():
    gate = Gate()
    gate.pause()
    trainer = Trainer(gate, 400)
    gate.settle(20)
    clients = [threading.Thread(target=lambda: [gate.grant() for _ in range(50)]) for _ in range(3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    gate.settle(20)
    assert gate.step == 151
    gate.resume()
    assert trainer.result() == "finished"


@pytest.mark.parametrize("paused", [True, False])
def test_stop_wins(paused):
    gate = Gate(pause_at=3 if paused else None)
    trainer = Trainer(gate, 10**9)
    while paused and gate.status != "paused":
        assert trainer.is_alive()
    gate.stop()
    gate.pause()
    assert trainer.result() == "stopped"


def test_lease_ends_but_hand_stays():
    gate = Gate()
    gate.pause("client-1")
    trainer = Trainer(gate, 10)
    gate.settle(20)
    gate.pause(HAND)
    assert not gate.drop("client-1")
    assert gate.status == "paused"
    gate.resume()
    assert trainer.result() == "finished"
    gate.pause("client-2")
    assert gate.drop("client-2")
    assert gate.status == "running"


def test_close_frees_and_refusals():
    gate = Gate()
    with pytest.raises(UsageError, match="not paused"):
        gate.grant()
    with pytest.raises(UsageError, match="not paused"), gate.held():
        pass
    gate.pause()
    with pytest.raises(UsageError, match="at least one"):
        gate.grant(0)
    trainer = Trainer(gate, 5)
    gate.settle(20)
    gate.close()
    assert trainer.result() == "finished"
    assert gate.passing(7) == 0.0


def test_a_step_that_was_not_kept_is_passed_once_for_one_that_is():  # S4.1
    gate = Gate()
    gate.pause()
    assert gate.will_hold(0)
    assert gate.passing(1, whole=lambda: False) == 0.0, "the next one is kept"
    assert (gate.status, gate.will_hold(1)) == ("pausing", True)
    gate.resume()
    gate.pause(exactly=True)
    trainer = Trainer(gate, 1)
    gate.settle(20)
    assert (gate.step, gate.status) == (1, "paused")
    gate.resume()
    assert trainer.result() == "finished"
    assert [Gate(pause_at=5).will_hold(step) for step in (3, 4)] == [False, True]
