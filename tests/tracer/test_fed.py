"""What a step was fed, as a paused run tells it: never what the loop made of it since. # S4.1"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracer.errors import MissingDataError
from tracer.fed import Fed
from tracer.values import decode


def fed(*pieces, copy=False):
    made = Fed()
    for piece in pieces:
        made.add(piece, copy=copy)
    return made


def read(made):
    node, buffers = made.stored()
    return decode(node, buffers.__getitem__)


def test_pieces_come_back_as_they_were_fed():
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2])
    assert torch.equal(read(fed({"x": [x, "text"], "n": 3}))["x"][0], x)
    one, two = read(fed([x], [y, x[0]]))
    assert torch.equal(one[0], x)
    assert torch.equal(two[0], y)
    assert torch.equal(two[1], x[0])


@pytest.mark.parametrize("copy", [True, False])
def test_a_batch_that_the_loop_overwrote_is_never_shown_for_it(copy):
    x = torch.ones(3)
    made = fed([x], copy=copy)
    x.mul_(2)
    if copy:
        assert torch.equal(read(made)[0], torch.ones(3))
    else:
        with pytest.raises(MissingDataError, match="overwritten by the loop; make one step"):
            made.stored()


def test_arrays_do_not_count_their_changes():
    assert read(fed([np.ones(2)], copy=True))[0].tolist() == [1, 1]
    with pytest.raises(MissingDataError, match="cannot be told"):
        fed([np.ones(2)]).stored()


def test_what_the_loop_puts_in_its_place_is_not_what_was_fed():
    x = torch.ones(2)
    batch = [x, {"y": x}]
    made = fed(batch)
    batch[0], batch[1]["y"] = torch.zeros(2), None
    assert read(made)[0].tolist() == read(made)[1]["y"].tolist() == [1, 1]


def test_nothing_was_fed():
    with pytest.raises(MissingDataError, match="make one step"):
        fed().stored()
