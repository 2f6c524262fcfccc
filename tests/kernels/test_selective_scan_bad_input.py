"""What the selective scan refuses, and what it says; and what looks odd and is fine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contracts.kernel_contract import Inputs
from contracts.scan_cases import make_both, make_scan, run_both, run_scan
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.selective_scan import ReverseDirection, bidirectional_selective_scan, selective_scan


def _make(**options: Any) -> Inputs:
    inputs = make_scan(torch.Generator().manual_seed(0), 7, **options)
    return {name: value.float() if isinstance(value, Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.zeros(2, 7)}, r"u has the wrong number of axes; given \(2, 7\); expected batch token channel"),
        ({"u": torch.zeros(2, 0, 4)}, r"u is empty; given \(2, 0, 4\)"),
        ({"u": torch.zeros(0, 7, 4)}, "u is empty"),
        ({"u": torch.zeros(2, 7, 4, dtype=torch.int64)}, "u holds no floating-point numbers; given torch.int64"),
        ({"u": None}, "u is no tensor; given NoneType"),
        ({"B": [[1.0]]}, "B is no tensor; given list"),
        ({"delta": torch.zeros(2, 8, 4)}, r"delta does not fit u and A; given \(2, 8, 4\); expected \(2, 7, 4\)"),
        ({"delta": torch.zeros(2, 7, 1)}, "delta does not fit"),
        ({"A": torch.zeros(5, 3)}, r"A does not fit u and A; given \(5, 3\); expected \(4, 3\)"),
        ({"A": torch.zeros(4)}, "A has the wrong number of axes"),
        ({"A": torch.zeros(4, 0)}, "A has a number of states that no scan takes; given 0; expected 1 to 256"),
        ({"A": torch.zeros(4, 257)}, "A has a number of states that no scan takes; given 257; expected 1 to 256"),
        ({"A": torch.zeros(4, 3, dtype=torch.complex64)}, "A is complex; given torch.complex64; expected real numbers"),
        ({"A": torch.zeros(4, 3, dtype=torch.float64)}, "A is float64 and u is not"),
        ({"B": torch.zeros(7)}, "B has the wrong number of axes"),
        ({"B": torch.zeros(2, 7, 4)}, r"B does not fit u and A; given \(2, 7, 1, 4\); expected \(2, 7, 1, 3\)"),
        ({"B": torch.zeros(2, 7, 3, 3)}, "B's groups do not divide the channels; given 3 groups for 4 channels"),
        ({"C": torch.zeros(2, 7, 0, 3)}, "C's groups do not divide the channels"),
        ({"C": torch.zeros(2, 6, 3)}, "C does not fit"),
        ({"C": torch.zeros(3, 4)}, r"C does not fit u and A; given \(3, 4\); expected \(4, 3\)"),
        ({"D": torch.zeros(3)}, "D does not fit"),
        ({"D": torch.zeros(4, device="meta")}, "D and u lie on different devices; given meta; expected cpu"),
        ({"z": torch.zeros(2, 7, 3)}, "z does not fit"),
        ({"delta_bias": torch.zeros(1)}, "delta_bias does not fit"),
        ({"initial_state": torch.zeros(2, 3, 4)}, "initial_state does not fit"),
        ({"impl": "fastest"}, "no such implementation"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: Inputs, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        selective_scan(**{**_make(D=True, z=True), **change})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_of_delta_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    inputs = {name: tensor.to(dtype) for name, tensor in _make().items()}
    inputs["delta"][1, 5, 2] = value
    with pytest.raises(KernelError, match=rf"delta is not finite; given {value} at .* \(1, 5, 2\), 1 such in all"):
        selective_scan(**inputs)


def test_infinities_that_cancel_are_found() -> None:
    inputs = _make()
    inputs["delta"][0, 0, :2] = torch.tensor([math.inf, -math.inf])
    with pytest.raises(KernelError, match="2 such in all"):
        selective_scan(**inputs)


def test_nan_is_found_behind_a_sum_that_overflows() -> None:
    inputs = _make()
    inputs["delta"][:] = 3e38
    inputs["delta"][0, 3, 1] = math.nan
    with pytest.raises(KernelError, match=r"given nan at .* \(0, 3, 1\), 1 such in all"):
        selective_scan(**inputs)


def test_finite_numbers_whose_sum_overflows_are_taken() -> None:
    inputs = _make() | {"delta": torch.full((2, 7, 4), 3e38)}
    inputs["u"] = torch.zeros(2, 7, 4)
    assert (selective_scan(**inputs) == 0).all()


def test_the_look_at_delta_can_be_left_out() -> None:
    inputs = _make()
    inputs["delta"][0, 3, 1] = math.nan
    output = selective_scan(**inputs, check_values=False)
    assert output[0, 3:, 1].isnan().all()
    assert output[0, :, 0].isfinite().all()
    assert output[1].isfinite().all()


def test_the_other_directions_own_inputs_are_checked_too() -> None:
    inputs = {name: value.float() for name, value in make_both(torch.Generator().manual_seed(0), 7).items()}
    delta = inputs["delta"].clone()
    delta[0, 0, 0] = math.nan
    with pytest.raises(KernelError, match="delta is not finite"):
        bidirectional_selective_scan(**inputs, reverse=ReverseDirection(delta=delta))
    with pytest.raises(KernelError, match="A does not fit"):
        bidirectional_selective_scan(**inputs, reverse=ReverseDirection(A=torch.zeros(5, 3)))


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_transposed_and_flipped_views_just_work(impl: str) -> None:
    inputs = _make(z=True, initial_state=True)
    views = {
        "u": inputs["u"].transpose(1, 2).contiguous().transpose(1, 2),
        "delta": inputs["delta"].transpose(0, 1).contiguous().transpose(0, 1),
        "z": torch.cat([inputs["z"], inputs["z"]], -1)[..., :4],
        "A": inputs["A"].t().contiguous().t(),
        "B": inputs["B"].transpose(1, 2).contiguous().transpose(1, 2),
        "initial_state": inputs["initial_state"].transpose(1, 2).contiguous().transpose(1, 2),
    }
    assert not any(view.is_contiguous() for view in views.values())
    for found, expected in zip(run_scan(inputs | views, impl), run_scan(inputs, impl), strict=True):
        # The reference sums over states in the order of memory: float32 rounding.
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    shared = {name: value for name, value in (inputs | views).items() if name != "initial_state"}
    plain = {name: value for name, value in inputs.items() if name != "initial_state"}
    assert torch.allclose(run_both(shared, impl)[0], run_both(plain, impl)[0], rtol=1e-6, atol=1e-6)


def test_256_states_are_taken() -> None:
    inputs = _make(states=256)
    expected = selective_scan(**inputs, impl="reference")
    assert torch.allclose(selective_scan(**inputs), expected, rtol=1e-4, atol=1e-4)
