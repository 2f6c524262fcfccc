"""`neuroray gap`: the brain age gap of a run that predicts age, raw and corrected, and what it goes with."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.cli import UsageError
from neuroray.jobs.run_record import git_commit, package_versions, record_run
from neuroray.platform.brain_age_gap.answer_line import LINE_FILE, draw_answer_line, read_weights
from neuroray.platform.brain_age_gap.answers import AgeAnswer, read_age_answers
from neuroray.platform.brain_age_gap.evidence import GapStudy
from neuroray.platform.brain_age_gap.findings import tell_case, tell_headline, tell_raw
from neuroray.platform.brain_age_gap.recovery import Recovery, describe_recovery, recover_gap, tell_recovery
from neuroray.platform.brain_age_gap.report import describe_gap_study, write_gap_report
from neuroray.platform.brain_age_gap.study import FitOn, study_gap
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.storage.store import ScanStore
from neuroray.storage.whole_file import replace_file

_TEST, _VAL = "predictions.csv", "predictions_val.csv"
_TABLES = (("report.json", _TEST), ("baselines.json", "baselines_predictions.csv"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Correct the gaps of everybody held out, compare groups, and follow those who came more than once."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder that `neuroray evaluate` has judged, or any folder that it, or `neuroray baselines`, wrote."""
    store: str | None = None
    """The store of the scans; where they were judged when not given."""
    controls: tuple[str, ...] = ()
    """Values of the diagnosis column who are controls; without, corrections rest on all and no group is compared."""
    diagnosis_column: str = "diagnosis"
    """The column of the store that tells groups apart."""
    predictor: str | None = None
    """Of a folder of baselines: which one."""
    fit_on: FitOn = "auto"
    """Whose controls the corrections are fitted on: other_folds (auto, with two folds or more), validation, table."""
    fit_predictions: str | None = None
    """A table of predictions of people who are not judged; makes --fit-on auto take it."""
    truth: str | None = None
    """The folder of a simulated cohort: hold the gap against what was planted."""
    out: str | None = None
    """Where gap.html, gap.json, gap.csv, age_correction.json and run.json go; RUN/gap when not given, where `neuroray
    predict` and `export` look for the correction."""
    seed: int = 0
    """Of the bootstrap."""
    num_resamples: int = NUM_RESAMPLES
    """Bootstrap resamples."""
    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Reads what was said of ages, studies the gap, writes the page."""
    table, report = _find_table(Path(args.run))
    out = Path(args.out) if args.out else Path(args.run) / "gap"
    with record_run(out, job="gap", args=args, seed=args.seed) as record:
        store = _open_store(args, report)
        study = _study(args, table, store)
        recovery = _recover(args, study)
        provenance = {
            "run_name": Path(args.run).resolve().name + (f", {args.predictor}" if args.predictor else ""),
            "store": store.uri,
            "catalogue_version": store.version,
            "predictions": str(table),
            "versions": package_versions(),
            "git_commit": git_commit(),
            "made_at": datetime.now(UTC).date().isoformat(),
            "commands": [_tell_command(args)],
        }
        paths = write_gap_report(study, out, provenance=provenance, recovery=recovery)
        paths |= _write_line(study, report, out)
        answer = _summarise(study, recovery, paths)
        record.add(catalogue_version=store.version, **answer)
    return answer | {"text": _tell(study, recovery, paths)}


def _find_table(folder: Path) -> tuple[Path, Path]:
    """Predictions and the report beside them: of the folder itself, or of its evaluation."""
    for place in (folder / "evaluate", folder):
        for report, table in _TABLES:
            if (place / table).is_file():
                return place / table, place / report
    raise UsageError(
        f"nothing in {folder} tells what a model said of held-out people", fix=f"neuroray evaluate {folder}"
    )


def _open_store(args: Args, report: Path) -> ScanStore:
    """At the catalogue version that was judged, where the report beside the predictions tells it."""
    told = json.loads(report.read_text()) if report.is_file() else {}
    told = told.get("provenance", told)
    uri = args.store or told.get("store")
    if uri is None:
        raise UsageError("the predictions do not say where their scans are", fix="--store STORE")
    version = told.get("catalogue_version") if uri == told.get("store") else None
    store = ScanStore(uri, version=version)
    return store if version is not None else ScanStore(uri, version=store.version)


def _study(args: Args, table: Path, store: ScanStore) -> GapStudy:
    records = {record.scan_id: record for record in store.records()}

    def read(path: Path, predictor: str | None) -> list[AgeAnswer]:
        return read_age_answers(path, records, group_column=args.diagnosis_column, predictor=predictor)

    further: list[AgeAnswer] = []
    fit_on = args.fit_on
    if args.fit_predictions is not None:
        further, fit_on = _read_fitted(args, Path(args.fit_predictions), store), "table" if fit_on == "auto" else fit_on
    elif (table.parent / _VAL).is_file():
        further = read(table.parent / _VAL, None)
    return study_gap(
        read(table, args.predictor),
        controls=args.controls,
        further=further,
        fit_on=fit_on,
        seed=args.seed,
        num_resamples=args.num_resamples,
    )


def _read_fitted(args: Args, path: Path, store: ScanStore) -> list[AgeAnswer]:
    """Another table, of the store that the report beside it names; else of the one that was judged."""
    beside = dataclasses.replace(args, store=None if (path.parent / "report.json").is_file() else store.uri)
    other = _open_store(beside, path.parent / "report.json")
    records = {record.scan_id: record for record in other.records()}
    answers = read_age_answers(path, records, group_column=args.diagnosis_column)
    if other.uri == store.uri:
        return answers
    # The same id in two cohorts is not the same person.
    return [
        dataclasses.replace(
            row,
            subject=f"{other.uri} {row.subject}",
            family_id=f"{other.uri} {row.family_id}" if row.family_id else None,
        )
        for row in answers
    ]


def _recover(args: Args, study: GapStudy) -> Recovery | None:
    if args.truth is None:
        return None
    from neuroray.storage.simulate.ground_truth import read_truth

    return recover_gap(study, read_truth(args.truth))


def _write_line(study: GapStudy, report: Path, out: Path) -> dict[str, Path]:
    """For `neuroray predict`, of a model whose weights the evaluation names; baselines answer for nobody new."""
    path = out / LINE_FILE
    judged = report.name == "report.json" and report.is_file()
    weights = read_weights(json.loads(report.read_text())) if judged else ()
    if not weights:
        path.unlink(missing_ok=True)
        return {}
    line = draw_answer_line(study, weights)
    replace_file(path, (json.dumps(line.to_json(), indent=2) + "\n").encode())
    return {LINE_FILE: path}


def _tell_command(args: Args) -> str:
    words = ["neuroray", "gap", args.run]
    named = {"store": args.store, "predictor": args.predictor, "fit-predictions": args.fit_predictions}
    named |= {"truth": args.truth}
    words += [word for name, value in named.items() if value for word in (f"--{name}", value)]
    words += ["--controls", *args.controls] if args.controls else []
    words += ["--diagnosis-column", args.diagnosis_column, "--fit-on", args.fit_on]
    return shlex.join([*words, "--seed", str(args.seed), "--num-resamples", str(args.num_resamples)])


def _summarise(study: GapStudy, recovery: Recovery | None, paths: dict[str, Path]) -> dict[str, Any]:
    described = describe_gap_study(study)
    kept = ("headline", "num_people", "num_scans", "raw", "is_useless", "correction", "cases", "warnings")
    answer = {name: described[name] for name in kept}
    if recovery is not None:
        answer["recovery"] = describe_recovery(recovery)
    return answer | {name.replace(".", "_"): str(path) for name, path in paths.items()}


def _tell(study: GapStudy, recovery: Recovery | None, paths: dict[str, Path]) -> str:
    lines = [
        f"{tell_headline(study)} ({len(study.answers)} scans of {study.num_people} people)",
        f"  {tell_raw(study)}",
    ]
    lines += [f"  {tell_case(case)}" for case in study.cases]
    lines += [f"  {tell_recovery(recovery)}"] if recovery else []
    lines += [f"  note: {warning}" for warning in study.warnings]
    return "\n".join([*lines, f"written to {paths['gap.html']}"])
