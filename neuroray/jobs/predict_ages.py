"""What `neuroray predict` tells of a NeuroAR run: region volumes at other ages, for many scans, as a table."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from neuroray.jobs.cli import UsageError
from neuroray.platform.generate.ages import check_targets
from neuroray.platform.generate.pictures import draw_strip, to_dark_png
from neuroray.platform.generate.sweep import AgeSweep
from neuroray.platform.generate.sweep_pictures import find_shown_of, tell_notes, tell_rows
from neuroray.serve.prediction import ModelCard
from neuroray.serve.question import Question, QuestionError
from neuroray.storage.participants import Participant

if TYPE_CHECKING:
    from neuroray.jobs.predict import Args

COLUMN: Final = "target_ages_years"
"""Of the table of people: the ages asked for each, with a space between them."""


def check_ages_wanted(args: Args, card: ModelCard) -> None:
    """What is wrong with the ages asked for whichever scan it is, told before the first of them is read.

    Raises:
        UsageError: ages of a model that tells none, or the other way round, or told twice; years that are no number.
        GenerationError: target ages that are none.
    """
    if card.ageing is None:
        if args.ages or args.in_years:
            fix = "leave --ages and --in-years out, or name a run of neuroar/transformer"
            raise UsageError("this model tells nothing of other ages", given=card.model_name, fix=fix)
        return
    if args.ages and args.in_years:
        raise UsageError("target ages are told twice", given="--ages besides --in-years")
    check_targets(args.ages)
    odd = [years for years in args.in_years if not math.isfinite(years)]
    if odd:
        raise UsageError("years after the scan are no number", given=odd[0], expected="years", fix="--in-years 2 5")
    if not (args.ages or args.in_years or args.people):
        fix = f"--ages 65 70, or --in-years 2 5, or a column {COLUMN} in the table of --people"
        raise UsageError("a model of brains at other ages needs to know which", given="none", fix=fix)


def add_ages(question: Question, args: Args, known: Participant | None) -> Question:
    """The question with the ages that are asked for this person: by the command line, else by the table.

    Raises:
        QuestionError: neither says any, or they are none.
    """
    ages = args.ages
    if args.in_years:
        if question.age_years is None:
            fix = "--age-years, or an age in the table of --people"
            raise QuestionError("the age at which the scan was made is not given", expected="years", fix=fix)
        ages = tuple(round(question.age_years + years, 6) for years in args.in_years)
    column = "" if known is None else known.extra.get(COLUMN, "")
    if not ages and column.strip():
        try:
            ages = tuple(float(one) for one in re.split(r"[\s;,]+", column.strip()))
        except ValueError:
            raise QuestionError(f"{COLUMN} cannot be read", given=column, expected="65 70 75") from None
    diagnosis = None if known is None else known.diagnosis
    return dataclasses.replace(question, ages=ages, diagnosis=diagnosis, allow_outside=args.allow_outside)


def write_strip(sweep: AgeSweep, args: Args, number: int) -> dict[str, Any]:
    """Numbered, for two files may have the same name."""
    path = Path(args.out) / "strips" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        to_dark_png(draw_strip(sweep.given.own_grid, tell_rows(sweep), find_shown_of(sweep), notes=tell_notes(sweep)))
    )
    return {"strip": str(path)}


def write_age_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per scan and age, the scan itself first; a refused scan has one, with the reason."""
    answered = next((row["ageing"] for row in rows if row["refusal"] is None), None)
    names = list(answered["regions"]["scan_ml"]) if answered else []
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        volumes = [f"{name}_ml" for name in names] + [f"{name}_change_ml" for name in names]
        facts = ["mean_absolute_difference", "changed_token_fraction", "reconstruction_psnr_db"]
        table.writerow(
            [
                "scan",
                "age_years",
                "told_age_years",
                *volumes,
                *facts,
                "profile",
                "profile_sha256",
                "warnings",
                "refusal",
            ]
        )
        for row in rows:
            for told in [None] if row["refusal"] is not None else [None, *row["ageing"]["ages"]]:
                table.writerow(_fill_line(row, told, names))


def tell_age_row(row: dict[str, Any]) -> list[str]:
    """What is said of a scan: the main region at each age, then what it is measured against."""
    ageing = row["ageing"]
    main = ageing["regions"]["main"]
    ages = [
        f"{one['age_years']:g} years: {main} {_tell_ml(one['regions_ml'][main])} "
        f"({_tell_ml(one['regions_change_ml'][main], signed=True)})"
        for one in ageing["ages"]
    ]
    now = ageing["regions"]["start_ml"][main]
    quality = f"{ageing['reconstruction']['psnr_db']:.1f} dB"
    base = f"  at {ageing['age_years']:g} years (reconstructed with {quality}): {main} {_tell_ml(now)}"
    return ["; ".join(ages), f"{base}; changes are against this"]


def _fill_line(row: dict[str, Any], told: dict[str, Any] | None, names: Sequence[str]) -> list[Any]:
    """Of an age; None: of the scan itself, or of one that was refused."""
    ending = [row.get("profile", ""), row.get("profile_sha256", ""), "; ".join(row.get("warnings", []))]
    if row["refusal"] is not None:
        return [row["scan"], "", "", *[""] * (2 * len(names) + 3), *ending, row["refusal"]["text"]]
    ageing = row["ageing"]
    psnr_db = ageing["reconstruction"]["psnr_db"]
    if told is None:
        volumes = [ageing["regions"]["scan_ml"][name] for name in names]
        return [row["scan"], ageing["age_years"], "", *volumes, *[""] * (len(names) + 2), psnr_db, *ending, ""]
    volumes = [told[kind][name] for kind in ("regions_ml", "regions_change_ml") for name in names]
    facts = [told["mean_absolute_difference"], told["changed_token_fraction"], psnr_db]
    return [row["scan"], ageing["age_years"], told["age_years"], *volumes, *facts, *ending, ""]


def _tell_ml(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "not measurable"
    return f"{value:+.2f} ml" if signed else f"{value:.2f} ml"
