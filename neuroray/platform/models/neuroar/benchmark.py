"""`python -m neuroray.platform.models.neuroar.benchmark`: generation on kept keys against whole passes, and sweeps."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def main() -> None:
    """Prints one line of JSON: seconds (of the processor, on a CPU), whether tokens agree, peak memory on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--previous", choices=("channel", "sequence"), default="channel")
    parser.add_argument("--ages", type=int, default=10, help="target ages of the sweep")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true")
    args = parser.parse_args()
    print(json.dumps(measure(**vars(args))))


def measure(*, width: int, depth: int, previous: str, ages: int, repeats: int, bfloat16: bool) -> dict[str, Any]:
    """Times one scan at one target age both ways, then one scan at many, with weights as drawn, made livelier."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = NeuroARConfig(width=width, depth=depth, num_heads=max(1, width // 64), previous=previous)  # type: ignore[arg-type]
    model, quantiser = config.build().to(device).eval(), MultiScaleQuantiser(config.quantiser).to(device).eval()
    with torch.no_grad():
        model.head.weight.mul_(50)  # so that likeliest codes are far enough apart to be compared
    if bfloat16:
        model = model.bfloat16()
    tokens = torch.randint(config.quantiser.num_codes, (1, config.num_tokens), device=device)
    one = torch.tensor([[60.0, 70.0]], device=device)
    sweep = torch.stack([torch.full((ages,), 60.0), 60 + torch.arange(ages, dtype=torch.float32)], 1).to(device)
    kept_s, kept = _time(lambda: generate_tokens(model, quantiser, tokens, one), repeats)
    whole_s, whole = _time(lambda: generate_by_whole_passes(model, quantiser, tokens, one), max(1, repeats - 2))
    sweep_s, _ = _time(lambda: generate_tokens(model, quantiser, tokens, sweep), max(1, repeats - 2))
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_tokens": config.num_tokens,
        "kept_s": round(kept_s, 4),
        "whole_passes_s": round(whole_s, 4),
        "times_faster": round(whole_s / kept_s, 2),
        "equal_tokens": float((kept == whole).float().mean()),
        "num_ages": ages,
        "sweep_s": round(sweep_s, 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }


@torch.no_grad()
def generate_by_whole_passes(
    model: NeuroARTransformer,
    quantiser: MultiScaleQuantiser,
    previous_tokens: Int[Tensor, "previous token"],
    ages_years: Float[Tensor, "batch 2"],
) -> Int[Tensor, "batch token"]:
    """Greedy generation without anything kept: a pass over all tokens for every scale, or for every token."""
    config = model.config
    shown = describe_previous(quantiser, previous_tokens, config.latent_shape)
    tokens = torch.zeros(len(ages_years), config.num_tokens, dtype=torch.int64, device=ages_years.device)
    for start, end in pairwise(config.ends if config.order == "scale" else range(config.num_tokens + 1)):
        inputs, before = quantiser.teacher_inputs(tokens, config.latent_shape), describe_before(quantiser, tokens)
        logits = model(inputs, ages_years, shown, before=before).logits
        tokens[:, start:end] = logits[:, start:end].argmax(-1)
    return tokens


def _time(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """The shortest time of some; the first call on a GPU, which loads kernels, does not count."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        work()
    clock = time.perf_counter if on_gpu else time.process_time
    times, found = [], None
    for _ in range(repeats):
        began = clock()
        found = work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - began)
    assert found is not None
    return min(times), found


if __name__ == "__main__":
    main()
