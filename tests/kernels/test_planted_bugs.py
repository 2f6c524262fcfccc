"""The suite catches bugs: each one planted in the torch implementation makes the comparison with the reference fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts.kernel_contract import Inputs, KernelContract
from contracts.scan_cases import BOTH_CASES, CASES, run_both, run_scan
from torch import Tensor

from neuroray.kernels.selective_scan import torch_impl


class _Suite(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "reference")


class _BothSuite(KernelContract):
    cases = BOTH_CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "reference")


Plant = Callable[[pytest.MonkeyPatch], None]


def _replace(name: str, make: Callable[[Any], Any], owner: Any = torch_impl) -> Plant:
    """Puts `make(what was there)` in its place."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, make(getattr(owner, name)))


def _drop_last_segment(split_tokens: Any) -> Any:
    return lambda tokens, length, *, reverse: split_tokens(tokens, length, reverse=reverse)[: max(tokens // length, 1)]


def _forget_decay(differentiate_decay: Any) -> Any:
    return lambda decays, adjoints, before: differentiate_decay(torch.ones_like(decays), adjoints, before)


def _take_the_state_after(differentiate_decay: Any) -> Any:
    return lambda decays, adjoints, before: differentiate_decay(decays, adjoints, before.roll(-1, 0))


def _swap_ends(pick_end: Any) -> Any:
    return lambda rows, *, reverse: pick_end(rows, reverse=not reverse)


def _carry_nothing(carry_over: Any) -> Any:
    return lambda *arguments, **options: torch.zeros_like(carry_over(*arguments, **options))


def _lose_the_carry(retreat: Any) -> Any:
    return lambda *arguments: torch.zeros_like(retreat(*arguments))


def _shift_decays(retreat: Any) -> Any:
    def run(direction: Any, g: Any, own: Any, carry: Tensor) -> Tensor:
        moved = own.tensor.roll(1, 0)
        return retreat(direction, g, torch_impl._Work(moved, moved.unbind(0)), carry)

    return run


def _order_groups_wrongly(weights: Any) -> Any:
    def run(direction: Any, tensor: Tensor, span: Any) -> Tensor:
        found = weights(direction, tensor, span)
        return found if tensor.ndim == 2 else found.flip(2)

    return run


def _add_too_late(read: Any) -> Any:
    return lambda direction, segment, states, product, other: read(direction, segment, states, product, None)


BUGS: dict[str, Plant] = {
    "wrong decay in the backward": _replace("differentiate_decay", _forget_decay),
    "the state after in place of that before in the backward": _replace("differentiate_decay", _take_the_state_after),
    "decays of the token before in the adjoint": _replace("_retreat", _shift_decays, torch_impl._Direction),
    "last chunk not written": _replace("split_tokens", _drop_last_segment),
    "the wrong direction's carry": _replace("pick_end", _swap_ends),
    "no carry between the backward's segments": _replace("_retreat", _lose_the_carry, torch_impl._Direction),
    "no carry between lanes": _replace("_carry_over", _carry_nothing),
    "softplus's derivative left out": _replace("differentiate_softplus", lambda _: lambda gradient, raw: gradient),
    "groups in the wrong order": _replace("_weights", _order_groups_wrongly, torch_impl._Direction),
}
BOTH_BUGS: dict[str, Plant] = {
    "the wrong direction's carry": BUGS["the wrong direction's carry"],
    "the other direction not added": _replace("_read", _add_too_late, torch_impl._Direction),
}


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["by rows", "in lanes"])
def _short_segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_impl, "_SEGMENT_ON_CPU", 1)
    monkeypatch.setattr(torch_impl, "_LONG_ROW", request.param)


def _find_failures(suite: KernelContract) -> list[str]:
    failures = []
    for case in suite.cases:
        try:
            suite.test_values_and_gradients_match_the_reference(case, torch.float32, "cpu")
        except AssertionError:
            failures.append(case)
    return failures


def test_without_a_bug_nothing_fails() -> None:
    assert _find_failures(_Suite()) == []
    assert _find_failures(_BothSuite()) == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "no carry between lanes" and torch_impl._LONG_ROW == 0:
        pytest.skip("there are no lanes where rows run one by one")
    BUGS[bug](monkeypatch)
    assert _find_failures(_Suite())


@pytest.mark.parametrize("bug", BOTH_BUGS)
def test_a_planted_bug_of_both_directions_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BOTH_BUGS[bug](monkeypatch)
    assert _find_failures(_BothSuite())
