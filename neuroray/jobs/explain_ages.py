"""`neuroray explain` of a NeuroAR run: where, how fast and how steadily a brain changes with the age asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from neuroray.jobs.cli import UsageError
from neuroray.jobs.run_record import RunRecord
from neuroray.platform.explain.randomisation import Stages, check_weights
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.platform.generate.ages import check_ages
from neuroray.platform.generate.change_map import FEWEST_AGES, ChangeMap, map_change
from neuroray.platform.generate.sweep import AgesAsked, AgeSweep, sweep_ages
from neuroray.platform.generate.sweep_pictures import draw_change
from neuroray.serve.ageing import tell_ages
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles.agreement import read_model_profile

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args

# From the answer down to what is told of ages and of the scan.
_STAGES: Final[Stages] = (
    ("head", ("head", "modulate_head")),
    ("blocks", ("blocks", "modulate")),
    ("ages and previous scan", ("ages", "embed_previous", "embed_target")),
)


def explain_ages(args: Args, folder: Path, out: Path, record: RunRecord) -> dict[str, Any]:
    """The change per year of one scan, its regions, and both checks.

    Raises:
        UsageError: options of other models.
        GenerationError: ages that are none, or that the training has not seen.
    """
    _refuse_others(args)
    age_years = check_ages(args.age_years, args.ages)
    # The present age is told like the others: what a transformer does not copy well is no change.
    asked = AgesAsked(
        age_years=age_years,
        target_ages_years=args.ages if age_years in args.ages else (age_years, *args.ages),
        allow_outside=args.allow_outside,
    )
    model = load_ageing_model(str(folder), device=args.device)
    sweep = tell_ages(model, read_model_profile(model.card).restore(), read_scan(str(args.scan)), asked)
    found = map_change(sweep, seed=args.seed)
    write_map(found.values, sweep.given.own_grid, out / "map.nii.gz", overwrite=True)
    (out / "overlay.png").write_bytes(draw_change(sweep, found.values))
    described = {"model": model.to_json(), **found.to_json(), "warnings": list(sweep.warnings)}
    described["reconstruction"] = sweep.to_json()["reconstruction"]
    if not args.skip_checks:
        described["checks"] = {
            "seed": args.seed,
            "map_correlation_after_scrambling": _scramble(model, sweep, found, args.seed),
            "orders_as_linear": found.orders_as_linear,
        }
    (out / "explain.json").write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    record.add(method=described["method"], target=described["target"])
    return described | {"text": _tell(found, described, out)}


def _refuse_others(args: Args) -> None:
    given = {
        "--store": args.store,
        "--method": args.method,
        "--target": args.target,
        "--group": args.group or None,
        "--sex": args.sex,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong or args.scan is None:
        raise UsageError(
            "a model of brains at other ages is explained by its change per year, scan by scan",
            given=", ".join(wrong) or "no scan",
            expected="--scan FILE --age-years 61 --ages 65 70 75 80",
        )


def _scramble(model: AgeingModel, sweep: AgeSweep, found: ChangeMap, seed: int) -> dict[str, Any]:
    """The map again, of transformers whose weights were dealt out anew; the tokenizer stays."""

    def explain(transformer: Any) -> ChangeMap:
        assert isinstance(transformer, nn.Module)
        other = dataclasses.replace(model, transformer=transformer)
        return map_change(sweep_ages(other, sweep.given, sweep.asked), seed=seed)

    return check_weights(model.transformer, explain, seed=seed, stages=_STAGES, found=found)


def _tell(found: ChangeMap, described: dict[str, Any], out: Path) -> str:
    ages = ", ".join(f"{age:g}" for age in found.ages_years)
    lines = [f"change per year over {ages} years; lines tell {found.linear_share:.0%} of all that changes"]
    slopes = described["regions_ml_per_year"]
    lines += [
        f"  {name:<12}{'not measurable' if one is None else f'{one:+.3f} ml a year'}" for name, one in slopes.items()
    ]
    if found.orders_as_linear is None:
        lines.append(f"  too few ages to check their order: {FEWEST_AGES - 1} and the present one do")
    else:
        lines.append(f"  {found.orders_as_linear:.0%} of other orders of these ages would tell as much")
    for part, value in described.get("checks", {}).get("map_correlation_after_scrambling", {}).items():
        told = "constant" if value["values"] is None else f"{value['values']:.2f}"
        lines.append(f"  with weights scrambled down to the {part}: map correlation {told}")
    lines += [f"  note: {warning}" for warning in described["warnings"]]
    return "\n".join([*lines, f"written to {out / 'map.nii.gz'} and beside it"])
