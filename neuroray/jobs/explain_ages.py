"""`neuroray explain` of a NeuroAR run: where, how fast and how steadily a brain changes with the age asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from neuroray.jobs.cli import UsageError
from neuroray.jobs.explained_scan import find_record
from neuroray.jobs.run_record import RunRecord
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.explain.measure_figures import draw_cascade
from neuroray.platform.explain.randomisation import Stages, check_weights
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.platform.generate.ages import check_ages
from neuroray.platform.generate.change_map import FEWEST_AGES, ChangeMap, map_change
from neuroray.platform.generate.sweep import AgesAsked, AgeSweep, sweep_ages
from neuroray.platform.generate.sweep_pictures import draw_change
from neuroray.platform.models.neuroar.nearest_head import NearestHead
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer
from neuroray.serve.ageing import check_asked, tell_ages, tell_ages_of_stored
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.prepared import Prepared

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args

# What a nearest head was given of the training people, which is no weight.
_DRIFT: Final[Stages] = (("average change", ("head.drift", "head.speeding", "head.leaning")),)
# From the answer down to what is told of ages and of the scan.
_STAGES: Final[Stages] = (
    ("head", ("head", "modulate_head")),
    ("blocks", ("blocks", "modulate")),
    ("ages and previous scan", ("ages", "embed_previous", "embed_target")),
)


def explain_ages(args: Args, folder: Path, out: Path, record: RunRecord) -> dict[str, Any]:
    """The change per year of one scan, its regions, and both checks.

    Raises:
        UsageError: options of other models; a subject of the store with several scans.
        GenerationError: ages that are none, or that the training has not seen.
        ProfileError: a scan of the store that was prepared otherwise than those of the training.
    """
    _refuse_others(args)
    if args.store is None:
        check_ages(args.age_years, args.ages)
    model = load_ageing_model(str(folder), device=args.device)
    sweep = _tell_stored(args, model) if args.store is not None else _tell_file(args, model)
    found = map_change(sweep, seed=args.seed)
    write_map(found.values, sweep.given.own_grid, out / "map.nii.gz", overwrite=True)
    (out / "overlay.png").write_bytes(draw_change(sweep, found.values))
    described = {"model": model.to_json(), **found.to_json(), "age_years": sweep.asked.age_years}
    described |= {"warnings": list(sweep.warnings), "reconstruction": sweep.to_json()["reconstruction"]}
    if not args.skip_checks:
        correlations = _scramble(model, sweep, found, args.seed)
        described["checks"] = {
            "seed": args.seed,
            "map_correlation_after_scrambling": correlations,
            "orders_as_linear": found.orders_as_linear,
        }
        (out / "checks.png").write_bytes(to_png(draw_cascade(correlations, is_signed=True)))
    (out / "explain.json").write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    record.add(method=described["method"], target=described["target"])
    return described | {"text": _tell(found, described, out)}


def _tell_file(args: Args, model: AgeingModel) -> AgeSweep:
    asked = _read_asked(args, args.age_years)
    return tell_ages(model, read_model_profile(model.card).restore(), read_scan(str(args.scan)), asked)


def _tell_stored(args: Args, model: AgeingModel) -> AgeSweep:
    """Of a store's scan, at the age that the store knows where no other is given."""
    store, record = find_record(args.store, args.subject, model.card)
    asked = _read_asked(args, record.age_years if args.age_years is None else args.age_years)
    check_asked(model, asked)
    prepared = Prepared(
        scan=store.read(record.scan_id),
        profile=store.read_profile(record.scan_id).restore(),
        mask=store.read_mask(record.scan_id),
        to_template=store.read_to_template(record.scan_id),
    )
    return tell_ages_of_stored(model, prepared, asked)


def _read_asked(args: Args, known_age_years: float | None) -> AgesAsked:
    age_years = check_ages(known_age_years, args.ages)
    # The present age is told like the others: what a transformer does not copy well is no change.
    return AgesAsked(
        age_years=age_years,
        target_ages_years=args.ages if age_years in args.ages else (age_years, *args.ages),
        allow_outside=args.allow_outside,
    )


def _refuse_others(args: Args) -> None:
    given = {
        "--method": args.method,
        "--target": args.target,
        "--group": args.group or None,
        "--sex": args.sex,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            "a model of brains at other ages is explained by its change per year, scan by scan",
            given=", ".join(wrong),
            expected="--scan FILE --age-years 61, or --store STORE --subject ID; with --ages 65 70 75 80",
        )


def _scramble(model: AgeingModel, sweep: AgeSweep, found: ChangeMap, seed: int) -> dict[str, Any]:
    """The map again, of transformers whose weights were dealt out anew; the tokenizer stays."""

    def explain(transformer: Any) -> ChangeMap:
        assert isinstance(transformer, nn.Module)
        other = dataclasses.replace(model, transformer=transformer)
        return map_change(sweep_ages(other, sweep.given, sweep.asked), seed=seed)

    return check_weights(model.transformer, explain, seed=seed, stages=choose_stages(model.transformer), found=found)


def choose_stages(transformer: NeuroARTransformer) -> Stages:
    """What is dealt out anew, one after another: first the average change of the training people, where it has one."""
    return (*_DRIFT, *_STAGES) if isinstance(transformer.head, NearestHead) else _STAGES


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
