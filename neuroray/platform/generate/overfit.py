"""One pair of visits learned by heart: a transformer that cannot do even this has a fault, and more data mends none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch.nn import functional

from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous

_LOOK_EVERY = 10
_WARM_UP_STEPS = 20
_CLIP_NORM = 2.0
_MOST_RATE, _RATE_TIMES_WIDTH = 5e-3, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """How the pair was learned.

    Attributes:
        is_exact: Whether greedy generation from the previous scan gives the target's tokens, all of them.
        num_steps: Until then, or as many as were allowed.
        wrong: Tokens that the last generation has got wrong.
        num_tokens: Of the target.
        num_changed: Of them that differ from the previous scan's: what copying would get wrong.
        curve: Share of tokens that teacher forcing gets right, by step.
    """

    is_exact: bool
    num_steps: int
    wrong: int
    num_tokens: int
    num_changed: int
    curve: tuple[tuple[int, float], ...]


def choose_rate(config: NeuroARConfig) -> float:
    """A learning rate by which a pair is learned in some tens of steps: the wider, the smaller (as in muP)."""
    return min(_MOST_RATE, _RATE_TIMES_WIDTH / config.width)


def overfit_pair(
    config: NeuroARConfig,
    quantiser: MultiScaleQuantiser,
    previous: Int[torch.Tensor, "1 token"],
    target: Int[torch.Tensor, "1 token"],
    ages_years: tuple[float, float],
    *,
    num_steps: int,
    rate: float,
    seed: int = 0,
    track: Callable[[range], Iterable[int]] = iter,
) -> Overfit:
    """Trains a new transformer on this pair alone until it generates the target exactly.

    Args:
        config: Of the run; nothing is hidden from it here, and nothing dropped.
        quantiser: Of the tokenizer; it does not learn.
        previous: Tokens of the scan that is given.
        target: Of the one that is to be told.
        ages_years: At either.
        num_steps: At most.
        rate: Of AdamW.
        seed: Of the first weights.
        track: Shows progress over the steps.
    """
    device, shape = target.device, config.latent_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = dataclasses.replace(config, age_dropout=0.0, previous_dropout=0.0, dropout=0.0).build().to(device)
    model.adopt(quantiser)
    ages = torch.tensor([ages_years], dtype=torch.float32, device=device)
    shown, inputs = describe_previous(quantiser, previous, shape), quantiser.teacher_inputs(target, shape)
    before = describe_before(quantiser, target)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    curve: list[tuple[int, float]] = []
    wrong = target.shape[1]
    for step in track(range(num_steps + 1)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / _WARM_UP_STEPS)
        logits = model.train()(inputs, ages, shown, before=before).logits
        if step % _LOOK_EVERY == 0 or step == num_steps:
            curve.append((step, float((logits.argmax(-1) == target).float().mean())))
            if curve[-1][1] == 1.0 or step == num_steps:
                wrong = _generate_wrong(model, quantiser, previous, target, ages)
            if wrong == 0 or step == num_steps:
                break
        optimizer.zero_grad()
        functional.cross_entropy(logits.transpose(1, 2), target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
    return Overfit(
        is_exact=wrong == 0,
        num_steps=curve[-1][0],
        wrong=wrong,
        num_tokens=target.shape[1],
        num_changed=int((previous != target).sum()),
        curve=tuple(curve),
    )


def _generate_wrong(
    model: NeuroARTransformer,
    quantiser: MultiScaleQuantiser,
    previous: Int[torch.Tensor, "1 token"],
    target: Int[torch.Tensor, "1 token"],
    ages: Float[torch.Tensor, "1 2"],
) -> int:
    """Tokens that differ, told scale by scale from the model's own."""
    return int((generate_tokens(model.eval(), quantiser, previous, ages) != target).sum())
