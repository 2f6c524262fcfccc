"""The suite catches bugs: each one planted in the torch implementation makes the comparison with the reference fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts.causal_conv_cases import CASES, run_conv
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels.causal_conv import torch_impl


class _Suite(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "reference")


def _turn_taps(add_taps: Any) -> Any:
    return lambda x, weight, *, reverse: add_taps(x, weight.flip(1), reverse=reverse)


def _leave_last_tokens(add_taps: Any) -> Any:
    def run(x: Tensor, weight: Tensor, *, reverse: bool) -> Tensor:
        found = add_taps(x, weight, reverse=reverse)
        # As a kernel that takes four tokens at a time would, were it to forget the rest.
        found[:, len(x[0]) // 4 * 4 :] = torch.empty(())
        return found

    return run


def _pad_before_always(pair_tokens: Any) -> Any:
    return lambda tokens, lag, *, reverse: pair_tokens(tokens, lag, reverse=False)


def _pad_too_much_in_reverse(pair_tokens: Any) -> Any:
    return lambda tokens, lag, *, reverse: pair_tokens(tokens, lag + 1 if reverse else lag, reverse=reverse)


def _go_around(add_taps: Any) -> Any:
    def run(x: Tensor, weight: Tensor, *, reverse: bool) -> Tensor:
        lags = range(weight.shape[1] - 1, -1, -1)
        rolled = (x.roll(-lag if reverse else lag, 1) * tap for lag, tap in zip(lags, weight.unbind(1), strict=True))
        return sum(rolled, torch.zeros_like(x))

    return run


BUGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "taps in the wrong order": ("add_taps", _turn_taps),
    "last tokens not written": ("add_taps", _leave_last_tokens),
    "reverse padded before the first token": ("pair_tokens", _pad_before_always),
    "reverse padded by one token too many": ("pair_tokens", _pad_too_much_in_reverse),
    "the end seen from the beginning": ("add_taps", _go_around),
    "SiLU's derivative left out": ("differentiate_silu", lambda _: lambda gradient, total: gradient),
}


def _find_failures() -> list[str]:
    suite, failures = _Suite(), []
    for case in suite.cases:
        try:
            suite.test_values_and_gradients_match_the_reference(case, torch.float32, "cpu")
        except AssertionError:
            failures.append(case)
    return failures


def test_without_a_bug_nothing_fails() -> None:
    assert _find_failures() == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plant = BUGS[bug]
    monkeypatch.setattr(torch_impl, name, plant(getattr(torch_impl, name)))
    assert _find_failures()
