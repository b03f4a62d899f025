"""Time-travel search (B6, S4.9): recorded values at once, others by re-execution."""

from __future__ import annotations

import numpy as np
import pytest

import tracer
from replay import until
from tracer.condition import parse
from tracer.errors import NameUnknownError, StepError, UsageError


class TestLanguage:
    def holds(self, text, **values):
        return parse(text).holds(lambda name: np.asarray(values[name.replace(".", "_")])).tolist()

    def test_numbers_and_logic(self):
        x = [1.0, 2.0, np.nan, 4.0]
        assert self.holds("x > 1 and not x > 3", x=x) == [False, True, False, False]
        assert self.holds("1 < x <= 4 or isnan(x)", x=x) == [False, True, True, True]
        assert self.holds("-x ** 2 / 2 + 1 == -1", x=x) == [False, True, False, False]
        assert self.holds("x != x", x=x) == [False, False, True, False]

    def test_a_tensor_is_reduced_by_step(self):
        w = [[1.0, 2.0], [0.0, 5.0]]
        assert self.holds("min(a.w) < 0.5", a_w=w) == [False, True]
        assert self.holds("a.w > 4", a_w=w) == [False, True]
        assert self.holds("a.w > x", a_w=w, x=[3.0, 3.0]) == [False, True]
        assert self.holds("a.w[1] > 4", a_w=w) == [False, True]
        assert self.holds("norm(a.w) > 2.5", a_w=w) == [False, True]

    def test_names_may_have_numbers_in_them(self):
        assert parse("norm(0.weight) > 1.5 or grad.net.3.bias[1] < 1.e5").names == ("0.weight", "grad.net.3.bias")
        assert parse("2 * x1 > 1e5 and 0.5 < loss").names == ("x1", "loss")

    def test_a_window_is_of_the_steps_before(self):
        loss = np.ones(30)
        loss[20] = 4
        assert np.flatnonzero(self.holds("loss > 3 * median(loss, 100)", loss=loss)).tolist() == [20]
        loss[5] = 4
        assert np.flatnonzero(self.holds("loss > 3 * median(loss, 100)", loss=loss)).tolist() == [20]

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "1 < 2",
                "loss >",
                "open('x')",
                "().__class__",
                "loss if loss else 1",
                "[loss]",
                "'a' < loss",
                "x['a']",
            ),
            *("median(loss, x)", "norm(loss, 3)", "min(loss, key=1)", "lambda: loss", "__import__('os').x"),
        ],
    )
    def test_nothing_else_is_understood(self, text):
        with pytest.raises(UsageError):
            parse(text)


class TestRecorded:
    @pytest.fixture(autouse=True)
    def never_started(self, monkeypatch):
        monkeypatch.setattr("replay.session.Session._start", lambda *a, **k: pytest.fail("the program was started"))

    def test_forward_backward_and_lasting(self, digits):
        with tracer.open_trace(digits) as trace:
            losses = [trace.record(k)["loss"] for k in range(30)]
            low = [k for k in range(30) if losses[k] < 0.3]
            assert until(trace, "loss < 0.3") == low[0]
            assert until(trace, "loss < 0.3", start=low[0] + 1) == low[1]
            assert until(trace, "loss >= 0.3", backward=True) == max(set(range(30)) - set(low))
            assert until(trace, "loss < 0.3", lasting=True) == max(set(range(30)) - set(low)) + 1
            assert until(trace, "loss < 0") is None
            assert until(trace, "loss > 1e9", lasting=True) is None

    def test_a_capture(self, digits):
        with tracer.open_trace(digits) as trace:
            least = trace.captures["bcl/win_rate"].read().min(axis=1)
            assert until(trace, "min(bcl.win_rate) < 0.05") == int(np.flatnonzero(least < 0.05)[0])

    def test_no_such_step(self, digits):
        with pytest.raises(StepError):
            until(digits, "loss < 1", start=30)


class TestReexecuted:
    def test_a_tensor_that_was_not_stored(self, basic):
        size = {}
        with tracer.open_trace(basic) as trace:
            for k in (0, 10, 11):
                size[k] = float(trace.state(k)["fc.weight"].norm())
        border = (size[10] + size[11]) / 2
        word = ">" if size[11] > size[10] else "<"
        found = until(basic, f"norm(fc.weight) {word} {border!r}", start=10)
        assert found == 11
        assert until(basic, f"norm(fc.weight) {word} {border!r}", start=10, backward=True) != 11

    def test_any_predicate(self, basic):
        assert until(basic, in_the_middle, start=3) == 9

    def test_a_name_that_there_is_not(self, basic):
        with pytest.raises((UsageError, NameUnknownError), match=r"fc\.wait"):
            until(basic, "norm(fc.wait) > 1")


def in_the_middle(step):
    return step.step >= 9 and step.next_state["fc.bias"].isfinite().all()
