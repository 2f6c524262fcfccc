"""`neuroray generate`: the same brain at other ages, told by NeuroAR from one scan, on the scan's own grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.platform.generate.ageing_model import load_ageing_model
from neuroray.platform.generate.ages import check_ages, name_age
from neuroray.platform.generate.generated import BrainAtAge, check_sampling
from neuroray.platform.generate.pictures import draw_strip, make_animation, to_dark_png
from neuroray.platform.generate.sweep import AgesAsked, AgeSweep
from neuroray.platform.generate.sweep_pictures import find_shown_of, tell_notes, tell_rows
from neuroray.platform.models.neuroar.generate import Decode, Detail, SamplingConfig
from neuroray.serve.ageing import check_asked, tell_ages
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles.agreement import read_model_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """The same brain at other ages. What is asked amiss is refused before anything is computed."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder of neuroar/transformer, or its model folder."""

    scan: Annotated[str, tyro.conf.Positional]
    """A NIfTI or MGZ file: one volume, as the model was trained on."""

    ages: tuple[float, ...]
    """Ages in years for which the brain is told, in the order of the strip."""

    age_years: float | None = None
    """Age of the person when the scan was made; needed."""

    out: str = "runs/generate"
    """Where age_70.nii.gz and so on, the differences, strip.png, ages.gif, generate.json and run.json go."""

    temperature: float = 0.0
    """Codes are drawn, the wilder the higher; 0: always the likeliest, the same each time."""

    top_k: int = 0
    """Draw among so many likeliest codes alone; 0: all."""

    top_p: float = 1.0
    """Draw among the likeliest codes that together have this probability alone; 1: all."""

    age_guidance: float = 1.0
    """How far to go in the direction in which ages change what is told: 1 as far as they do, 2 twice as far (changes
    are overdrawn); two passes in place of one."""

    previous_guidance: float = 1.0
    """The same of the previous scan: above 1 nearer to it; three passes in place of one."""

    guidance_ramp: bool = True
    """Guide not at all at the coarsest scale and fully at the finest, as VAR does; with --no-guidance-ramp at each
    alike."""

    decode: Decode | None = None
    """`codes`: the chosen codes; `mean`: at each place the mean of all by their probabilities, so that the brain moves
    a little with every year; `vectors`: of a run with the nearest head, what codes are compared with. None: as the
    run's recipe says; codes wherever --temperature is above 0."""

    detail: Detail | None = None
    """`none`: what tokens lose of the scan is lost; `scan`: the scan plus the change that is told. None: as the run's
    recipe says."""

    samples: int = 1
    """Draw so many brains for each age: their mean is written, and their standard deviation as age_70_sd.nii.gz."""

    seed: int = 0
    """Of the draws."""

    diagnosis: str | None = None
    """Of the person, as the study calls it: one that the training has not seen is refused."""

    allow_outside: bool = False
    """Ages, or a diagnosis, that the training has not seen are told all the same, with a warning in the output."""

    slab: int | None = None
    """Decode so many planes at a time: less memory, the same to rounding; all at once when not given."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Tells the brain at each age and writes volumes, differences and pictures."""
    out = Path(args.out)
    with record_run(out, job="generate", args=args, seed=args.seed) as record:
        asked = _read_asked(args)
        check_sampling(asked.sampling, asked.num_samples)
        model = load_ageing_model(args.run, device=args.device, slab=args.slab)
        check_asked(model, asked)
        profile = read_model_profile(model.card).restore()
        watched = progress(list(args.ages), label="generate")
        sweep = tell_ages(model, profile, read_scan(args.scan), asked, track=watched)
        answer = {"scan": args.scan, "model": model.to_json()} | _write_all(out, sweep)
        answer |= {"warnings": list(sweep.warnings)}
        (out / "generate.json").write_text(json.dumps(answer, indent=2, allow_nan=False) + "\n")
        record.add(model=model.to_json(), num_ages=len(sweep.made), warnings=answer["warnings"])
    return answer | {"text": _tell(answer, out)}


def _read_asked(args: Args) -> AgesAsked:
    return AgesAsked(
        age_years=check_ages(args.age_years, args.ages),
        target_ages_years=args.ages,
        sampling=_choose_sampling(args),
        num_samples=args.samples,
        seed=args.seed,
        allow_outside=args.allow_outside,
        diagnosis=args.diagnosis,
    )


def _choose_sampling(args: Args) -> SamplingConfig:
    return SamplingConfig(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        age_guidance=args.age_guidance,
        previous_guidance=args.previous_guidance,
        guidance_ramp=args.guidance_ramp,
        decode=args.decode,
        detail=args.detail,
    )


def _write_all(out: Path, sweep: AgeSweep) -> dict[str, Any]:
    """Volumes and pictures; what `generate.json` tells of them."""
    told = sweep.to_json()
    write_map(sweep.reconstruction, sweep.given.own_grid, out / "reconstruction.nii.gz", overwrite=True)
    for one, described in zip(sweep.made, told["ages"], strict=True):
        described["files"] = _write_age(out, sweep, one)
    told["reconstruction"] = {"file": "reconstruction.nii.gz"} | told["reconstruction"]
    shown, rows = find_shown_of(sweep), tell_rows(sweep)
    (out / "strip.png").write_bytes(to_dark_png(draw_strip(sweep.given.own_grid, rows, shown, notes=tell_notes(sweep))))
    (out / "ages.gif").write_bytes(make_animation(sweep.given.own_grid, rows[1:], shown))
    return told | {"files": {"strip": "strip.png", "animation": "ages.gif"}}


def _write_age(out: Path, sweep: AgeSweep, one: BrainAtAge) -> dict[str, str]:
    name, grid = f"age_{name_age(one.age_years)}", sweep.given.own_grid
    files = {"volume": f"{name}.nii.gz", "difference": f"{name}_minus_scan.nii.gz"}
    write_map(one.values, grid, out / files["volume"], overwrite=True)
    write_map(sweep.change_to(one), grid, out / files["difference"], overwrite=True)
    if one.spread is not None:
        files["spread"] = f"{name}_sd.nii.gz"
        write_map(one.spread, grid, out / files["spread"], overwrite=True)
    return files


def _tell_tokens(one: dict[str, Any]) -> str:
    changed = one["changed_token_fraction"]
    return "" if changed is None else f"{changed:.0%} of tokens changed, "


def _tell(answer: dict[str, Any], out: Path) -> str:
    lines = [
        f"{answer['scan']} at {answer['age_years']:g} years; reconstructed with "
        f"{answer['reconstruction']['psnr_db']:.1f} dB: {answer['reconstruction']['mean_absolute_error']:.3g} of the "
        f"scan's units off on average"
    ]
    lines += [
        f"  {one['age_years']:g} years: {out / one['files']['volume']}, {_tell_tokens(one)}"
        f"changed by {one['mean_absolute_difference']:.3g} on average"
        for one in answer["ages"]
    ]
    lines += [f"  note: {warning}" for warning in answer["warnings"]]
    return "\n".join(
        [*lines, f"differences are against {answer['difference_against']}", f"pictures: {out / 'strip.png'}, ages.gif"]
    )
