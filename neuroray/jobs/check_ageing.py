"""`neuroray check-ageing`: three experiments that a NeuroAR must pass before its brains are worth a look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import tyro
from matplotlib.figure import Figure

from neuroray.jobs.cli import UsageError
from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.platform.data.tokens import TOKENIZER, load_tokenizer
from neuroray.platform.evaluate.ageing_bench import RegionMeter, first_visits
from neuroray.platform.evaluate.ageing_rows import ModelTeller
from neuroray.platform.evaluate.ageing_sweep import SweptPerson, choose_ages, sweep_person
from neuroray.platform.evaluate.image_quality import compare_volumes
from neuroray.platform.evaluate.run import RunFold, check_people, open_run_store, read_folds
from neuroray.platform.evaluate.style import MUTED, SERIES, styled, to_png
from neuroray.platform.evaluate.visits import Visit, VisitPair, VisitReader, name_scans, pair_records
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.platform.generate.overfit import Overfit, choose_rate, overfit_pair
from neuroray.platform.models.neuroar.vqvae import VQVAE
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.profile import IN_TEMPLATE
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

_FAILED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Check a run of NeuroAR: reconstruction, one pair by heart, ventricles over ages. Exit code 1 where one fails."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN of neuroar/transformer; of a run of neuroar/vqvae the reconstruction alone is checked."""

    store: str | None = None
    """Where the scans are; where the run found them when not given."""

    people: int = 8
    """So many of the run's test people, in the order of their names."""

    min_psnr_db: float = 25.0
    """The reconstruction passes from here on: the mean over people, in the brain, of values in [0, 1]."""

    steps: int = 600
    """The pair is to be known by heart after so many steps at most."""

    rate: float | None = None
    """Learning rate of these steps; 0.5 over the width, 5e-3 at most, when not given."""

    least_rising: float = 0.95
    """The ages pass when the ventricles of such a share of people widen at each step of age."""

    out: str | None = None
    """Where check.json, check.png and run.json go; RUN/check-ageing when not given."""

    seed: int = 0
    """Of the weights that learn the pair."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One experiment.

    Attributes:
        name: What was tried.
        passed: Whether it went as it should.
        told: What was measured, in a sentence.
        facts: The same for programs.
        fix: What to try where it has failed.
    """

    name: str
    passed: bool
    told: str
    facts: dict[str, Any]
    fix: str

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        fix = None if self.passed else self.fix
        return {"name": self.name, "passed": self.passed, "told": self.told, "fix": fix, **self.facts}

    def to_text(self) -> str:
        """A line, and a second one where it has failed."""
        if self.passed:
            return f"pass  {self.name}: {self.told}"
        return f"FAIL  {self.name}: {self.told}\n      likely fix: {self.fix}"


def run(args: Args) -> dict[str, Any]:
    """Tries all that the run can be tried in, and tells each with its figures."""
    if args.people < 1 or args.steps < 1:
        raise UsageError("nothing would be checked", given=f"--people {args.people} --steps {args.steps}")
    out = Path(args.out) if args.out else Path(args.run) / "check-ageing"
    with record_run(out, job="check-ageing", args=args, seed=args.seed) as record:
        fold = name_scans(read_folds(Path(args.run))[0])
        store = open_run_store(fold, args.store)
        checks = _check(args, fold, store)
        answer = {"run": args.run, "passed": all(one.passed for one in checks)}
        answer |= {"checks": [one.to_json() for one in checks]}
        (out / "check.json").write_text(json.dumps(answer, indent=2, allow_nan=False) + "\n")
        (out / "check.png").write_bytes(to_png(_draw(checks)))
        record.add(**answer)
    text = "\n".join([*(one.to_text() for one in checks), f"written to {out / 'check.json'} and {out / 'check.png'}"])
    return answer | {"text": text, "exit_code": 0 if answer["passed"] else _FAILED}


def _check(args: Args, fold: RunFold, store: ScanStore) -> list[Check]:
    records = {record.scan_id: record for record in store.records()}
    check_people(fold, records)
    held_out = [records[scan_id] for scan_id in fold.split.test]
    if fold.card["model_name"] == TOKENIZER:
        tokenizer = load_tokenizer(str(fold.path))
        read = VisitReader(store, tokenizer.model.to(args.device), tokenizer.grid)
        return [_check_reconstruction(args, [read(one) for one in held_out[: args.people]], tokenizer.model)]
    model = load_ageing_model(str(fold.path), device=args.device)
    pairs = pair_records(held_out, backward=False)
    if not pairs:
        given, expected = f"{len(held_out)} scans", "two visits of one person, at different ages"
        fix = "train with --split fields by which such people come to the test side"
        raise UsageError("nobody on the test side came twice", given=given, expected=expected, fix=fix)
    read = VisitReader(store, model.tokenizer, model.grid)
    chosen = first_visits(pairs)[: args.people]
    visits = [read(one) for one in chosen]
    return [
        _check_reconstruction(args, visits, model.tokenizer),
        _check_pair(args, model, max(pairs, key=lambda pair: pair.gap_years), read),
        _check_ages(args, model, visits, store),
    ]


def _check_reconstruction(args: Args, visits: Sequence[Visit], tokenizer: VQVAE) -> Check:
    found = []
    for visit in visits:
        x, y, z = visit.volume.shape
        rebuilt = tokenizer.decode(visit.tokens, (x, y, z))[0].cpu().numpy()
        found.append(compare_volumes(rebuilt, visit.volume, visit.brain)["psnr_brain"])
    mean = float(np.mean(found))
    return Check(
        name="reconstruction",
        passed=mean >= args.min_psnr_db,
        told=f"{mean:.2f} dB in the brain over {len(found)} test scans ({min(found):.2f} to {max(found):.2f}); "
        f"{args.min_psnr_db:g} wanted",
        facts={"psnr_db": found, "mean_psnr_db": mean, "limit_db": args.min_psnr_db},
        fix="train the first stage longer, or with more codes: what it cannot draw, no age shows",
    )


def _check_pair(args: Args, model: AgeingModel, pair: VisitPair, read: VisitReader) -> Check:
    found: Overfit = overfit_pair(
        model.transformer.config,
        model.tokenizer.quantiser,
        read(pair.previous).tokens,
        read(pair.target).tokens,
        pair.ages_years,
        num_steps=args.steps,
        rate=choose_rate(model.transformer.config) if args.rate is None else args.rate,
        seed=args.seed,
        track=partial(progress, label="one pair", unit="step"),
    )
    changed = f"{found.num_changed} of {found.num_tokens} tokens differ between its visits"
    told = "generated exactly" if found.is_exact else f"{found.wrong} of {found.num_tokens} tokens generated wrong"
    facts = {
        "num_steps": found.num_steps,
        "wrong": found.wrong,
        "num_tokens": found.num_tokens,
        "num_changed": found.num_changed,
        "curve": [list(point) for point in found.curve],
    }
    told = f"{told} after {found.num_steps} steps of a new transformer; {changed}"
    fix = (
        "more --steps where the curve in check.png still rises; where it stands still something in the model is broken"
    )
    return Check(name="one pair by heart", passed=found.is_exact, told=told, facts=facts, fix=fix)


def _check_ages(args: Args, model: AgeingModel, visits: Sequence[Visit], store: ScanStore) -> Check:
    profile = read_model_profile(model.card)
    measure = RegionMeter(store=store, in_template=profile.name in IN_TEMPLATE)
    main = measure.maps(visits[0]).main
    swept = []
    for visit in progress(list(visits), label="ages"):
        person = _sweep(visit, model, measure)
        swept += [] if person is None else [person]
    if not swept:
        told = "nobody can be told older within the ages and gaps of the training"
        fix = "a run that was trained on longer gaps, or test people of its ages"
        return Check(name="ages", passed=False, told=told, facts={"num_people": 0, "region": main}, fix=fix)
    rising = float(np.mean([one.rises(main) for one in swept]))
    longest = max(one.ages_years[-1] - one.ages_years[0] for one in swept)
    slopes = [one.slope(one.volumes_ml[main]) for one in swept]
    return Check(
        name="ages",
        passed=rising >= args.least_rising,
        told=f"{main}: larger at every step of age in {rising:.0%} of {len(swept)} people, {args.least_rising:.0%} "
        f"wanted; {np.mean(slopes):+.3f} ml a year over up to {longest:.1f} years",
        facts={
            "region": main,
            "num_people": len(swept),
            "rising_share": rising,
            "limit": args.least_rising,
            "slopes_ml_per_year": slopes,
            "people": [{"ages_years": one.ages_years, "ml": one.volumes_ml[main]} for one in swept],
        },
        fix="train the second stage longer or on more pairs; neuroray evaluate shows what it has learned of change",
    )


def _sweep(visit: Visit, model: AgeingModel, measure: RegionMeter) -> SweptPerson | None:
    ages = choose_ages(visit.age_years, model.card)
    if not ages:
        return None
    rebuilt = model.tokenizer.decode(visit.tokens, model.grid)[0].cpu().numpy()
    record: ScanRecord = visit.record
    group = VisitPair(previous=record, target=record).group
    return sweep_person(visit, ages, ModelTeller(model), group=group, reconstruction=rebuilt, measure=measure)


@styled
def _draw(checks: Sequence[Check]) -> Figure:
    """A panel for each."""
    figure = Figure(figsize=(3.2 * len(checks), 2.6))
    panels = np.atleast_1d(figure.subplots(1, len(checks)))
    for axes, check in zip(panels, checks, strict=True):
        facts = check.facts
        axes.set_title(f"{check.name}: {'pass' if check.passed else 'FAIL'}")
        if "psnr_db" in facts:
            axes.bar(range(len(facts["psnr_db"])), facts["psnr_db"], color=SERIES[0])
            axes.axhline(facts["limit_db"], color=MUTED, lw=0.8)
            axes.set(xlabel="Test scan", ylabel="Reconstruction, brain (dB)", xticks=[])
        elif "curve" in facts:
            axes.plot(*zip(*facts["curve"], strict=True), color=SERIES[0])
            axes.set(xlabel="Step", ylabel="Tokens right, teacher forced", ylim=(0, 1.02))
        else:
            for person in facts.get("people", ()):
                axes.plot(person["ages_years"], person["ml"], color=SERIES[0], lw=0.9, alpha=0.7, marker="o", ms=2.5)
            axes.set(xlabel="Age told (years)", ylabel=f"{facts['region']} (ml)")
    return figure
