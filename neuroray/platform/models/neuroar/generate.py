"""Generation: five passes, one per scale, each on the keys and values of those before; guidance and sampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from neuroray.config import Config, ConfigError
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, shrink
from neuroray.platform.models.neuroar.transformer import Conditions, NeuroARTransformer, describe_previous
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int


Decode = Literal["codes", "mean", "vectors"]
Detail = Literal["none", "scan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig(Config):
    """How codes are chosen.

    Attributes:
        temperature: Divides logits; 0: always the likeliest code, which needs no generator and ignores what follows.
        top_k: Only among so many likeliest codes; 0: all.
        top_p: Only among the likeliest codes that together have this probability; 1: all.
        age_guidance: How much further to go in the direction in which ages change logits; 1: as far as they do.
        previous_guidance: The same of the previous scan.
        decode: What is decoded; None: what the run's recipe says (`complete`), else codes. `codes`: those that are
            chosen, as in the paper. `mean`: at each place the mean of all codes by their probabilities, of which later
            scales are told too: the latent then moves a little with every year, where a choice of codes stays the same
            for years and jumps. `vectors`: of a `nearest` head, what codes are compared with, in their place: nothing
            of a change is rounded off, and nothing of the codebook is left in it. These two draw nothing.
        detail: What becomes of that in the scan which its tokens lose; None: what the run's recipe says, else none.
            `none`: it is lost, as in the paper. `scan`: what is generated is the scan itself plus the difference
            between what the model tells of the target age and of the scan's own: at its own age, the scan.
        guidance_ramp: Go none of that further way at the first scale and all of it at the last, as VAR does; else
            at every scale.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    age_guidance: float = 1.0
    previous_guidance: float = 1.0
    decode: Decode | None = None
    detail: Detail | None = None
    guidance_ramp: bool = True

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                "sampling is none", given=self.to_json(), expected="temperature and top_k >= 0, top_p to 1"
            )
        if self.decode in ("mean", "vectors") and self.temperature > 0:
            given = f"temperature {self.temperature:g}, decode {self.decode}"
            raise ConfigError("only chosen codes are drawn", given=given, fix="temperature 0, or decode codes")
        if not all(0 <= one < math.inf for one in (self.age_guidance, self.previous_guidance)):
            raise ConfigError("guidance is none", given=self.to_json(), expected="0 or more")

    def complete(self, decode: Decode, detail: Detail) -> SamplingConfig:
        """With what is left open; codes that are drawn are what is decoded."""
        if self.temperature > 0:
            decode = "codes"
        return dataclasses.replace(self, decode=self.decode or decode, detail=self.detail or detail)

    @property
    def is_guided(self) -> bool:
        """Whether more is asked than one pass of a scale that is told everything."""
        return not self.age_guidance == self.previous_guidance == 1


def require_guidance(config: NeuroARConfig, sampling: SamplingConfig) -> None:
    """Guidance compares with what a model tells that has not been told all: it must have learned from such rows.

    Raises:
        ConfigError: guidance of a model from which nothing was hidden in training.
    """
    if not sampling.is_guided:
        return
    needed = ["age_dropout"] if sampling.previous_guidance == 1 else ["age_dropout", "previous_dropout"]
    if sampling.previous_guidance != 1 and config.previous == "none":
        raise ConfigError("a model that sees no previous scan cannot be guided by it", given=sampling.previous_guidance)
    missing = [name for name in needed if getattr(config, name) == 0]
    if missing:
        raise ConfigError(
            "this model cannot be guided: it was trained with everything told, and never without",
            given=f"{' and '.join(missing)} 0",
            expected="rows whose ages, or previous scans, were hidden in training",
            fix=f"no guidance; or train with {' '.join(f'--model.{one.replace("_", "-")} 0.1' for one in missing)}",
        )


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        tokens: The chosen codes.
        latent: To be decoded.
    """

    tokens: Int[Tensor, "batch token"]
    latent: Float[Tensor, "batch channel x y z"]


@torch.no_grad()
def generate_tokens(
    model: NeuroARTransformer,
    quantiser: MultiScaleQuantiser,
    previous_tokens: Int[Tensor, "previous token"],
    ages_years: Float[Tensor, "batch 2"],
    sampling: SamplingConfig | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch token"]:
    """Tokens of the same brain at the target ages.

    Args:
        model: In eval mode.
        quantiser: Of the tokenizer that the model was trained with.
        previous_tokens: Of one scan for all rows, or of one for each.
        ages_years: Of the previous scan and of the target.
        sampling: None: greedy, which is deterministic.
        generator: Draws; needed where the temperature is above 0.

    Raises:
        ModelError: inputs that do not fit, ages that are none.
        ConfigError: sampling without a generator; guidance of a model that learned from no hidden rows.
    """
    return generate_latent(model, quantiser, previous_tokens, ages_years, sampling, generator=generator).tokens


@torch.no_grad()
def generate_latent(
    model: NeuroARTransformer,
    quantiser: MultiScaleQuantiser,
    previous_tokens: Int[Tensor, "previous token"],
    ages_years: Float[Tensor, "batch 2"],
    sampling: SamplingConfig | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Generated:
    """Tokens, and the latent to be decoded (`VQVAE.decode_latent`); see `generate_tokens`."""
    sampling = sampling or SamplingConfig()
    require_guidance(model.config, sampling)
    if sampling.temperature > 0 and generator is None:
        raise ConfigError(
            "codes are drawn from a generator", given=None, fix="generator=torch.Generator().manual_seed(0)"
        )
    config = model.config
    if config.order == "token" and sampling.decode in ("mean", "vectors"):
        fix = "decode codes"
        raise ConfigError("tokens told one by one are decoded as they are", given=f"decode {sampling.decode}", fix=fix)
    scales, shape = config.scales, config.latent_shape
    branches = _prepare_branches(model, describe_previous(quantiser, previous_tokens, shape), ages_years, sampling)
    total: Tensor | None = None
    found: list[Tensor] = []
    for index in range(len(scales)):
        inputs = None if total is None else shrink(total, scales[index]).flatten(2).transpose(1, 2)
        ramp = index / max(1, len(scales) - 1) if sampling.guidance_ramp else 1.0
        choose = partial(_choose_guided, sampling=sampling, ramp=ramp, generator=generator)
        if config.order == "token":
            codes, branches = _tell_one_by_one(model, quantiser, index, inputs, branches, found, choose)
            vectors = quantiser.codebook.read(codes)
        else:
            told = [(w, *model.tell_scale(index, inputs, branch)) for w, branch in branches]
            codes, branches = choose(told)
            vectors = _choose_vectors(told, codes, quantiser, sampling, ramp)
        found.append(codes)
        part = quantiser.add_codes(vectors, index, scales)
        total = part if total is None else total + part
    tokens = torch.cat(found, 1)
    assert total is not None  # there is a scale
    # Chosen codes are summed volume by volume, so that a batch changes no bit of what is decoded.
    return Generated(tokens, total if sampling.decode in ("mean", "vectors") else quantiser.decode(tokens, shape))


def _choose_vectors(
    told: list[tuple[float, Tensor, Conditions]],
    codes: Tensor,
    quantiser: MultiScaleQuantiser,
    sampling: SamplingConfig,
    ramp: float,
) -> Float[Tensor, "batch token code_channel"]:
    """What is decoded of a scale: the chosen codes, their mean, or what they were compared with."""
    if sampling.decode == "mean":
        shares = _guide([(weight, one) for weight, one, _ in told], ramp).softmax(-1)
        return shares @ quantiser.codebook.codes.float()
    if sampling.decode != "vectors":
        return quantiser.codebook.read(codes)
    vectors = told[0][2].told
    if vectors is None:
        given, fix = "decode vectors", "decode codes or mean"
        raise ConfigError("a linear head compares codes with no vector", given=given, fix=fix)
    return vectors


def choose_codes(
    logits: Float[Tensor, "batch token code"], sampling: SamplingConfig, generator: torch.Generator | None
) -> Int[Tensor, "batch token"]:
    """The likeliest codes, or drawn ones."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        # A code stays while those before it have less than the share, so the likeliest always does.
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    shares = logits.softmax(-1)
    drawn = torch.multinomial(shares.flatten(0, 1), 1, generator=generator)
    return drawn.view(logits.shape[:2])


def _prepare_branches(
    model: NeuroARTransformer,
    previous: Float[Tensor, "previous token previous_channel"],
    ages_years: Float[Tensor, "batch 2"],
    sampling: SamplingConfig,
) -> list[tuple[float, Conditions]]:
    """Whole knowledge, then the previous scan alone, then neither, as far as guidance asks for them.

    Each with the weight of the step from the next one to it.
    """
    everyone = torch.ones(len(ages_years), dtype=torch.bool, device=ages_years.device)
    hidden = everyone[: len(previous)]
    branches = [(sampling.age_guidance, model.prepare(ages_years, previous))]
    if not sampling.is_guided:
        return branches
    branches.append((sampling.previous_guidance, model.prepare(ages_years, previous, hide_ages=everyone)))
    if sampling.previous_guidance != 1:
        branches.append((1.0, model.prepare(ages_years, previous, hide_ages=everyone, hide_previous=hidden)))
    return branches


def _choose_guided(
    told: list[tuple[float, Tensor, Conditions]],
    *,
    sampling: SamplingConfig,
    ramp: float,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "batch token"], list[tuple[float, Conditions]]]:
    """Codes by what all branches tell, and the branches as they have left them."""
    logits = _guide([(weight, one) for weight, one, _ in told], ramp)
    return choose_codes(logits, sampling, generator), [(weight, after) for weight, _, after in told]


def _tell_one_by_one(
    model: NeuroARTransformer,
    quantiser: MultiScaleQuantiser,
    scale_index: int,
    inputs: Tensor | None,
    branches: list[tuple[float, Conditions]],
    found: list[Tensor],
    choose: Callable[..., tuple[Tensor, list[tuple[float, Conditions]]]],
) -> tuple[Int[Tensor, "batch token"], list[tuple[float, Conditions]]]:
    """One scale of a model that tells token by token: a pass for each."""
    start, end = model.config.ends[scale_index : scale_index + 2]
    last = found[-1][:, -1:] if found else None
    codes = []
    for place in range(start, end):
        rows = len(branches[0][1].ages)
        zeros = quantiser.codebook.codes.new_zeros(rows, 1, quantiser.config.code_dim)
        before = zeros if last is None else quantiser.codebook.read(last)
        given = None if inputs is None else inputs[:, place - start : place - start + 1]
        last, branches = choose([(w, *model.tell_token(place, given, before, branch)) for w, branch in branches])
        codes.append(last)
    return torch.cat(codes, 1), branches


def _guide(told: list[tuple[float, Tensor]], ramp: float) -> Tensor:
    """Neither, plus the way to the previous scan, plus the way to the ages, each as far as its weight says.

    With one of them it is VAR's `(1 + t) told - t hidden`, with t = (weight - 1) ramp.
    """
    logits = told[-1][1]
    for (weight, one), (_, other) in reversed(list(pairwise(told))):
        logits = logits + (1 + (weight - 1) * ramp) * (one - other)
    return logits
