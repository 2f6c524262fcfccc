"""Right before fast: errors against float64, and the gate that an implementation passes before it is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuroray.kernels.benchmark.cases import Case, Inputs, list_gate_cases
from neuroray.kernels.benchmark.contestants import Contestant, list_ours, name_run

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
"""Of ||given - exact|| / ||exact||, output and every gradient: what the kernels promise."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far an implementation is from float64 at one shape.

    Attributes:
        error: Largest over the output and the gradients; NaN where there is one, infinite where it raised.
        worst: Of what.
    """

    name: str
    case: str
    dtype: str
    error: float
    worst: str
    passed: bool


def run_exactly(case: Case, inputs: Inputs, factors: Tensor, impl: str) -> tuple[Tensor, Inputs]:
    """Output and gradients of the very same numbers, by one of our implementations in float64."""
    exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    return differentiate(Contestant(name=impl, run=name_run(case, impl)), exact, factors.double())


def differentiate(contestant: Contestant, inputs: Inputs, factors: Tensor) -> tuple[Tensor, Inputs]:
    """The output and, of its sum weighed by `factors`, every input's gradient, both in our layout."""
    leaves = make_leaves(contestant, inputs)
    output = contestant.run(leaves)
    wanted = [name for name, value in leaves.items() if value.requires_grad]
    found = torch.autograd.grad(output, [leaves[name] for name in wanted], take_factors(contestant, output, factors))
    restored = {name: contestant.restore(name, value) for name, value in zip(wanted, found, strict=True)}
    return contestant.restore("output", output.detach()), restored


def make_leaves(contestant: Contestant, inputs: Inputs) -> Inputs:
    """Inputs in the contestant's layout; those with gradients ask for them."""
    prepared = contestant.prepare(inputs)
    return {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in prepared.items()
    }


def take_factors(contestant: Contestant, output: Tensor, factors: Tensor) -> Tensor:
    """What the output is weighed by, in the layout of the contestant's output; places that padding added get zero."""
    laid_out = torch.zeros_like(output)
    contestant.restore("output", laid_out).copy_(factors)
    return laid_out


def draw_factors(output: Tensor) -> Tensor:
    """Standard normal numbers in the shape and dtype of an output."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output)


def measure_error(given: Tensor, exact: Tensor) -> float:
    """||given - exact|| / ||exact||."""
    return float((given.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def find_worst(given: Inputs, exact: Inputs) -> tuple[str, float]:
    """The gradient with the largest error; a NaN is larger than any."""
    errors = {name: measure_error(given[name], exact[name]) for name in exact}
    name = max(errors, key=lambda one: (errors[one] != errors[one], errors[one]))
    return name, errors[name]


def judge(cases: list[Case], device: torch.device) -> list[Judgement]:
    """Every implementation of ours at a small and a middle shape of each kind of case."""
    small: dict[str, Case] = {}
    for case in cases:
        small |= {f"{one.label} {one.dtype}": one for one in list_gate_cases(case)}
    return [_judge_one(one, case, device) for case in small.values() for one in list_ours(case, device)]


def _judge_one(contestant: Contestant, case: Case, device: torch.device) -> Judgement:
    inputs = {name: value.to(device) for name, value in case.draw(torch.Generator().manual_seed(0)).items()}
    dtype = str(case.dtype).removeprefix("torch.")
    try:
        with torch.no_grad():
            factors = draw_factors(contestant.run(contestant.prepare(inputs)))
        output, gradients = differentiate(contestant, inputs, factors)
    except Exception as error:
        # Whatever it raises, it has failed, and the others go on.
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return Judgement(contestant.name, case.label, dtype, float("inf"), what, passed=False)
    exact_output, exact_gradients = run_exactly(case, inputs, factors, "reference")
    exact, given = exact_gradients | {"output": exact_output}, gradients | {"output": output}
    worst, error = find_worst(given, exact)
    return Judgement(contestant.name, case.label, dtype, error, worst, passed=error <= LIMIT[case.dtype])
