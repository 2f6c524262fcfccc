"""`python -m neuroray.platform.models.neuroar.benchmark`: generation on kept keys, sweeps, the decoder in slabs."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig
from neuroray.platform.models.neuroar.vqvae_config import VQVAEConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_PAGE = """# NeuroAR's speed

{device}, {processor}, torch {torch}. Weights as drawn, one scan, greedy; {clock}, the shorter of two. \
`make bench-neuroar`.

## Telling tokens

{depth} blocks of width {width}, {precision}, {tokens:,} tokens. \
Whole passes: one over all tokens for every scale, nothing kept. \
Equal: tokens that both ways
tell alike. Sweep: {ages} target ages of one scan.

| previous scan | million parameters | keys kept, s | whole passes, s | times faster | equal | sweep, s | peak GB |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

## Decoding them

The tokenizer of `neuroar/vqvae:base` to {grid} voxels, float32.

| computed at once | s | peak GB |
|---|---:|---:|
{decoded}
{missing}"""

_MISSING = """
## On a GPU

| | to reach | found |
|---|---|---|
| the paper's size, keys kept against whole passes | 5 times faster | not measured |
| one scan | under 1 s on an H200 | not measured |
| peak memory | under 12 GB | not measured; predicted: `neuroray train neuroar/transformer:paper --dry-run` |
| a sweep of ten ages | under 4 s | not measured |

The same command there measures all of these: `make bench-neuroar`.
"""


def main() -> None:
    """Prints one line of JSON: seconds (of the processor, on a CPU), whether tokens agree, peak memory on a GPU.

    With `--page` it writes the table of all that this machine can measure instead (`make bench-neuroar`).
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--previous", choices=("channel", "sequence"), default="channel")
    parser.add_argument("--ages", type=int, default=10, help="target ages of the sweep")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--page", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes in the table: whether it runs, not how fast")
    args = vars(parser.parse_args())
    page, quick = args.pop("page"), args.pop("quick")
    if page is None:
        print(json.dumps(measure(**args)))
        return
    page.write_text(measure_page(quick=quick))
    print(f"written: {page}")


def measure(*, width: int, depth: int, previous: str, ages: int, repeats: int, bfloat16: bool) -> dict[str, Any]:
    """Times one scan at one target age both ways, then one scan at many, with weights as drawn, made livelier."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = NeuroARConfig(width=width, depth=depth, num_heads=max(1, width // 64), previous=previous)  # type: ignore[arg-type]
    model, quantiser = config.build().to(device).eval(), MultiScaleQuantiser(config.quantiser).to(device).eval()
    assert isinstance(model.head, nn.Linear)
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


def measure_page(*, quick: bool = False) -> str:
    """The table: base on a CPU, the paper's size on a GPU; what the machine has not is said to be not measured."""
    on_gpu = torch.cuda.is_available()
    width, depth = (1024, 32) if on_gpu else (512, 16)
    ages, shape = 10, (160, 192, 176) if on_gpu else (48, 64, 48)
    if quick:
        width, depth, ages, shape = 64, 1, 2, (16, 16, 16)
    kinds: tuple[Literal["channel", "sequence"], ...] = ("channel", "sequence")
    rows = [measure(width=width, depth=depth, previous=kind, ages=ages, repeats=2, bfloat16=on_gpu) for kind in kinds]
    told = [
        f"| `{kind}` | {row['num_parameters'] / 1e6:.1f} | {row['kept_s']:.2f} | {row['whole_passes_s']:.2f} "
        f"| {row['times_faster']:.2f} | {row['equal_tokens']:.1%} | {row['sweep_s']:.2f} | {_tell(row['peak_gb'])} |"
        for kind, row in zip(kinds, rows, strict=True)
    ]
    decoders = [measure_decoder(shape, slab=slab, repeats=2) for slab in (None, 16)]
    decoded = [
        f"| {'all at once' if slab is None else f'{slab} planes'} | {row['decode_s']:.2f} | {_tell(row['peak_gb'])} |"
        for slab, row in zip((None, 16), decoders, strict=True)
    ]
    return _PAGE.format(
        device=rows[0]["device"],
        processor=_name_processor(),
        torch=torch.__version__,
        width=width,
        depth=depth,
        tokens=rows[0]["num_tokens"],
        precision="bfloat16" if on_gpu else "float32",
        clock="seconds on the clock" if on_gpu else "processor time",
        ages=ages,
        rows="\n".join(told),
        grid=" x ".join(map(str, shape)),
        decoded="\n".join(decoded),
        missing="" if on_gpu else _MISSING,
    )


def measure_decoder(shape: tuple[int, int, int], *, slab: int | None, repeats: int) -> dict[str, Any]:
    """Times the decoder of the base tokenizer on one volume, in float32 as `neuroray generate` runs it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = VQVAEConfig(num_blocks=1)
    model = config.build().to(device).eval()
    latent = torch.randn(1, config.quantiser.code_dim, *config.latent_shape(shape), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    decode_s, _ = _time(lambda: model.decode_latent(latent, slab=slab), repeats)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return {"decode_s": round(decode_s, 4), "peak_gb": peak}


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


def _tell(peak_gb: float | None) -> str:
    return "not measured" if peak_gb is None else f"{peak_gb:.2f}"


def _name_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
