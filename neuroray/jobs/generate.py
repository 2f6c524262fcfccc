"""`neuroray generate`: the same brain at other ages, told by NeuroAR from one scan, on the scan's own grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.platform.generate.ages import check_ages, compare_ages, name_age
from neuroray.platform.generate.generated import (
    BrainAtAge,
    ScanInTokens,
    Volume,
    change_maps,
    check_sampling,
    find_own_brain,
    generate_at_age,
    mean_absolute,
    measure_reconstruction,
    read_tokens_of,
    reconstruct,
)
from neuroray.platform.generate.pictures import PictureRow, draw_strip, find_shown, make_animation, to_dark_png
from neuroray.platform.models.neuroar.generate import SamplingConfig, require_guidance
from neuroray.serve.caution import compare_spacing, find_faults
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.scan import Scan

# What training asks of a tokenizer unless told otherwise (--min-psnr-db).
_LEAST_PSNR_DB = 25.0
_AGAINST = "the tokenizer's own reconstruction of the scan (reconstruction.nii.gz), and not the scan"


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
    """Guide not at all at the coarsest scale and fully at the finest, as VAR does; else at each alike."""

    samples: int = 1
    """Draw so many brains for each age: their mean is written, and their standard deviation as age_70_sd.nii.gz."""

    seed: int = 0
    """Of the draws."""

    allow_outside: bool = False
    """Ages that the training has not seen are told all the same, with a warning in the output."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Tells the brain at each age and writes volumes, differences and pictures."""
    out = Path(args.out)
    with record_run(out, job="generate", args=args, seed=args.seed) as record:
        age = check_ages(args.age_years, args.ages)
        sampling = _choose_sampling(args)
        check_sampling(sampling, args.samples)
        model = load_ageing_model(args.run, device=args.device)
        require_guidance(model.transformer.config, sampling)
        notes = compare_ages(age, args.ages, model.card, allow_outside=args.allow_outside)
        profile = read_model_profile(model.card).restore()
        scan = read_scan(args.scan)
        given = read_tokens_of(model, scan, profile)
        warnings = (*find_faults(scan, model.card["modality"]), *_compare(given, model), *notes)
        made = [
            generate_at_age(model, given, (age, target), sampling=sampling, num_samples=args.samples, seed=args.seed)
            for target in progress(list(args.ages), label="generate")
        ]
        answer = _write_all(out, args, model, given, made)
        warnings = (*warnings, *_judge_reconstruction(answer["reconstruction"]["psnr_db"]))
        answer |= {"warnings": list(warnings)}
        (out / "generate.json").write_text(json.dumps(answer, indent=2, allow_nan=False) + "\n")
        record.add(model=model.to_json(), num_ages=len(made), warnings=list(warnings))
    return answer | {"text": _tell(answer, out)}


def _choose_sampling(args: Args) -> SamplingConfig:
    return SamplingConfig(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        age_guidance=args.age_guidance,
        previous_guidance=args.previous_guidance,
        guidance_ramp=args.guidance_ramp,
    )


def _compare(given: ScanInTokens, model: AgeingModel) -> tuple[str, ...]:
    low, high = model.card["spacing_mm"]
    return compare_spacing(given.prepared, ((low[0], low[1], low[2]), (high[0], high[1], high[2])))


def _judge_reconstruction(psnr_db: float) -> tuple[str, ...]:
    if psnr_db >= _LEAST_PSNR_DB:
        return ()
    told = f"this scan is reconstructed with {psnr_db:.1f} dB, less than the {_LEAST_PSNR_DB:g} worth a transformer"
    return (f"{told}: what the tokenizer cannot draw, no age shows",)


def _write_all(
    out: Path, args: Args, model: AgeingModel, given: ScanInTokens, made: list[BrainAtAge]
) -> dict[str, Any]:
    plain = reconstruct(model, given)
    base, brain = given.restore(plain), find_own_brain(given)
    changes = change_maps(made, base)
    write_map(base, given.own_grid, out / "reconstruction.nii.gz", overwrite=True)
    ages = [
        _write_age(out, given, one, change, mean_absolute(change, brain))
        for one, change in zip(made, changes, strict=True)
    ]
    _write_pictures(out, args, given, brain, base, list(zip(made, changes, strict=True)))
    return {
        "scan": args.scan,
        "model": model.to_json(),
        "age_years": args.age_years,
        "sampling": {**_choose_sampling(args).to_json(), "seed": args.seed},
        "num_samples": args.samples,
        "ages": ages,
        "difference_against": _AGAINST,
        "reconstruction": {
            "file": "reconstruction.nii.gz",
            "psnr_db": measure_reconstruction(given, plain),
            "mean_absolute_error": mean_absolute(base - _as_prepared(given), brain),
        },
        "files": {"strip": "strip.png", "animation": "ages.gif"},
    }


def _write_age(out: Path, given: ScanInTokens, one: BrainAtAge, change: Volume, mean_change: float) -> dict[str, Any]:
    name = f"age_{name_age(one.age_years)}"
    files = {"volume": f"{name}.nii.gz", "difference": f"{name}_minus_scan.nii.gz"}
    write_map(one.values, given.own_grid, out / files["volume"], overwrite=True)
    write_map(change, given.own_grid, out / files["difference"], overwrite=True)
    if one.spread is not None:
        files["spread"] = f"{name}_sd.nii.gz"
        write_map(one.spread, given.own_grid, out / files["spread"], overwrite=True)
    return {
        "age_years": one.age_years,
        "files": files,
        "mean_absolute_difference": mean_change,
        "changed_token_fraction": one.changed_fraction,
    }


def _write_pictures(
    out: Path,
    args: Args,
    given: ScanInTokens,
    brain: np.ndarray,
    base: Volume,
    ages: list[tuple[BrainAtAge, Volume]],
) -> None:
    seen: Scan = given.own_grid
    prepared = _as_prepared(given)
    shown = find_shown(seen, np.nan_to_num(np.asarray(seen.voxels, np.float32)), brain)
    now = f"{name_age(args.age_years or 0)} years"
    first = PictureRow(label=f"scan\n{now}", values=prepared, change=None)
    second = PictureRow(label=f"reconstructed\n{now}", values=base, change=base - prepared)
    told = [
        PictureRow(label=f"generated\n{name_age(one.age_years)} years", values=one.values, change=change)
        for one, change in ages
    ]
    (out / "strip.png").write_bytes(to_dark_png(draw_strip(seen, [first, second, *told], shown)))
    (out / "ages.gif").write_bytes(make_animation(seen, [second, *told], shown))


def _as_prepared(given: ScanInTokens) -> Volume:
    """The scan as its profile left it, its brain alone, back on its own grid: as blurred by the way as the others."""
    values = np.nan_to_num(given.prepared.voxels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return given.lay(np.where(given.brain, values, 0).astype(np.float32))


def _tell(answer: dict[str, Any], out: Path) -> str:
    lines = [
        f"{answer['scan']} at {answer['age_years']:g} years; reconstructed with "
        f"{answer['reconstruction']['psnr_db']:.1f} dB, {answer['reconstruction']['mean_absolute_error']:.3g} off"
    ]
    lines += [
        f"  {one['age_years']:g} years: {out / one['files']['volume']}, {one['changed_token_fraction']:.0%} of tokens "
        f"changed, {one['mean_absolute_difference']:.3g} from the reconstruction"
        for one in answer["ages"]
    ]
    lines += [f"  note: {warning}" for warning in answer["warnings"]]
    return "\n".join([*lines, f"differences are against {_AGAINST}", f"pictures: {out / 'strip.png'}, ages.gif"])
