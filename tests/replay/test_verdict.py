"""Distances in units in the last place, and equality by bits (B2)."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replay.judge import loss_distance
from replay.verdict import Verdict, max_ulp, same_float


def ordered(value):
    """A float32's place in the order of all float32, the long way."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return bits if bits < 1 << 31 else -1 - (bits - (1 << 31))


floats = st.floats(width=32, allow_nan=False)


@given(floats, floats)
def test_float32_against_the_definition(a, b):
    expected = abs(ordered(a) - ordered(b))
    assert max_ulp(torch.tensor([a]), torch.tensor([b])) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neighbours_are_one_apart_wherever_they_are(dtype):
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for value in (1.0, -1.0, 0.0, -0.0, 3.0e-3, -7.5):
        here = torch.tensor([value], dtype=dtype)
        there = (here.view(whole) + 1).view(dtype)
        assert max_ulp(here, there) == max_ulp(there, here) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_across_zero(dtype):
    tiny = torch.tensor([1], dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]).view(dtype)
    zero = torch.zeros(1, dtype=dtype)
    assert max_ulp(zero, -zero) == 1
    assert max_ulp(tiny, zero) == 1
    assert max_ulp(tiny, -tiny) == 3
    assert max_ulp(-tiny, zero) == 2


def test_extremes_do_not_overflow():
    for dtype, width in ((torch.float32, 32), (torch.float64, 64)):
        high = torch.tensor([math.inf], dtype=dtype)
        apart = max_ulp(high, -high)
        assert (1 << (width - 1)) < apart < (1 << width)
    assert max_ulp(torch.tensor([127], dtype=torch.int8), torch.tensor([-128], dtype=torch.int8)) == 255
    assert max_ulp(torch.tensor([2**63 - 1]), torch.tensor([-(2**63)])) == 2**64 - 1


def test_a_nan_equals_itself_and_no_other():
    quiet = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    payload = torch.tensor([0x7FC00005], dtype=torch.int32).view(torch.float32)
    assert max_ulp(quiet, quiet) == 0
    assert max_ulp(quiet, payload) == 5
    assert max_ulp(quiet, torch.tensor([1.0])) > 1 << 20


@given(st.lists(floats, min_size=1, max_size=6), st.data())
def test_the_largest_of_all(values, data):
    others = data.draw(st.lists(floats, min_size=len(values), max_size=len(values)))
    each = [max_ulp(torch.tensor([a]), torch.tensor([b])) for a, b in zip(values, others, strict=True)]
    assert max_ulp(torch.tensor(values), torch.tensor(others)) == max(each)


def test_other_kinds():
    assert max_ulp(torch.tensor([1 + 1j]), torch.tensor([complex(1, 1 + 2**-23)])) == 1
    assert max_ulp(torch.tensor([True]), torch.tensor([False])) == 1
    assert max_ulp(torch.zeros(0), torch.zeros(0)) == 0
    assert max_ulp(torch.tensor(2.0), torch.tensor(2.0)) == 0
    assert max_ulp(torch.ones(2, 3).t(), torch.ones(3, 2)) == 0
    one = torch.tensor([1.0]).to(torch.float8_e4m3fn)
    assert max_ulp(one, torch.tensor([1.125]).to(torch.float8_e4m3fn)) == 1


@given(st.floats(), st.floats())
def test_losses_are_compared_by_bits_save_for_the_payload_of_a_nan(a, b):
    same = struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))
    assert same_float(a, b) == same
    assert same_float(a, a)
    assert not same_float(a, None)
    assert not same_float(None, b)


def test_no_loss_is_no_loss():
    assert same_float(None, None)
    assert not same_float(0.0, -0.0)


def test_the_distance_of_two_losses():
    here = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    there = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", 0.1))[0] + 3))[0]
    assert loss_distance(here, there) == 3
    assert loss_distance(0.1, math.nextafter(0.1, 1)) == 1
    assert loss_distance(math.nan, 1.0) > 0
    assert loss_distance(math.inf, 1.0) > 0


def test_as_json():
    verdict = Verdict("diverged", 3, "w", 2, "threads", "w differs by 2 ULP")
    assert not verdict.verified
    assert Verdict("verified", 1).verified
    assert Verdict(**verdict.as_dict()) == verdict
