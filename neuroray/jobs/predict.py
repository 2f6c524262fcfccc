"""`neuroray predict`: answers for scan files with a trained model; a refused file is listed, and the rest goes on."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuroray.errors import NeurorayError
from neuroray.jobs.cli import UsageError
from neuroray.jobs.logs import progress
from neuroray.jobs.predict_ages import add_ages, check_ages_wanted, tell_age_row, write_age_table, write_strip
from neuroray.jobs.prediction_page import PAGE, render_prediction_page
from neuroray.jobs.run_record import record_run
from neuroray.serve.maps import NUM_STEPS, AnswerMap
from neuroray.serve.prediction import ModelCard, TargetCard
from neuroray.serve.predictor import Predictor, load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.participants import Participant, ParticipantTable, read_participants
from neuroray.storage.scan_names import name_stem, subject_of

# Columns of a measure beside its value.
_PARTS = ("low", "high", "level", "spread", "model_spread")
# Of a predicted age, where the true one was told.
_GAPS = ("age_years", "raw_years", "beheshti_years", "cole_years")


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Predict for scan files. Exit code 1 when any of them was refused; the others are answered all the same."""

    model: Annotated[str, tyro.conf.Positional]
    """A RUN folder or an exported model folder; of a RUN with seeds or folds all of them answer together."""

    scans: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NIfTI or MGZ files: volumes or runs, as the model was trained on."""

    sex: Literal["M", "F"] | None = None
    """Sex of the person or people scanned, for models that take it into account; they say so where it is not given."""

    age_years: float | None = None
    """Age of the person or people at the time of the scan: what a predicted age is held against."""

    people: str | None = None
    """A table (such as participants.tsv) that tells sex and age of the people, found by the files' names or ids;
    in place of --sex and --age-years, which hold for all files."""

    ages: tuple[float, ...] = ()
    """Of a model that tells brains at other ages (neuroar): these ages, in years. Needs the present age."""

    in_years: tuple[float, ...] = ()
    """Of the same: so many years after each scan, in place of --ages. Without either, the column target_ages_years of
    the table of people says them."""

    allow_outside: bool = False
    """Of the same: ages, or a diagnosis in the table, that the training has not seen are told all the same, with a
    warning."""

    out: str = "runs/predict"
    """Where predictions.json, predictions.csv and run.json go."""

    explain: bool = False
    """Also write what each answer rests on: OUT/maps/N.nii.gz on the grid of the N-th scan, and N.png over its anatomy.
    Models of slices: attention, of a measure gradient times token; models of runs: Integrated Gradients."""

    num_steps: int = NUM_STEPS
    """Integrated Gradients: nodes of the path, each a pass forward and back through every window; the error is told."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Answers for each file and writes what came of it."""
    out = Path(args.out)
    question = Question(sex=args.sex, age_years=args.age_years, explain=args.explain, num_steps=args.num_steps)
    people = _read_people(args)
    asked = [_ask_of(path, question, people) for path in args.scans]
    with record_run(out, job="predict", args=args) as record:
        predictor = load_predictor(args.model, device=args.device)
        check_ages_wanted(args, predictor.card)
        files = progress(list(zip(args.scans, asked, strict=True)), label="predict")
        rows = [_answer_file(predictor, path, number, args, *one) for number, (path, one) in enumerate(files, start=1)]
        refused = [row for row in rows if row["refusal"] is not None]
        answer = {"model": predictor.card.to_json(), "predictions": rows, "num_refused": len(refused)}
        (out / "predictions.json").write_text(json.dumps(answer, indent=2) + "\n")
        _write_table(out / "predictions.csv", rows, predictor.card)
        (out / PAGE).write_text(render_prediction_page(answer["model"], rows, tell=_tell_answered))
        record.add(model=predictor.card.to_json(), num_scans=len(rows), num_refused=len(refused))
    return answer | {"text": _tell(rows, out), "exit_code": 1 if refused else 0}


def _read_people(args: Args) -> ParticipantTable | None:
    if args.people is None:
        return None
    if args.sex is not None or args.age_years is not None:
        raise UsageError("sex and age are told twice", given="--people besides --sex or --age-years")
    return read_participants(args.people)


def _ask_of(path: str, question: Question, people: ParticipantTable | None) -> tuple[Question, Participant | None]:
    """The question with what the table tells of the person in this file, and all that it tells."""
    if people is None:
        return question, None
    stem = name_stem(Path(path).name)
    known = people.files.get(stem) or people.find(subject_of(stem), _session_of(stem))
    if known is None:
        raise UsageError(f"the table of people does not know who is in {path}", fix="add a row, or leave --people out")
    return dataclasses.replace(question, sex=known.sex, age_years=known.age_years), known


def _session_of(stem: str) -> str | None:
    return next((part.removeprefix("ses-") for part in stem.split("_") if part.startswith("ses-")), None)


def _answer_file(
    predictor: Predictor, path: str, number: int, args: Args, question: Question, known: Participant | None
) -> dict[str, Any]:
    try:
        if predictor.card.ageing is not None:
            question = add_ages(question, args, known)
        reply = ask_predictor(predictor, read_scan(path), question)
        explained = {} if reply.map is None else _write_map(reply.map, args, number)
    except NeurorayError as error:
        return {"scan": path, "refusal": error.to_json() | {"text": str(error)}}
    kept = {name: value for name, value in reply.prediction.to_json().items() if name != "model"}
    if reply.ageing is not None:
        kept |= {"ageing": reply.ageing.to_json()} | write_strip(reply.ageing, args, number)
    return {"scan": path, "refusal": None} | kept | explained


def _write_map(found: AnswerMap, args: Args, number: int) -> dict[str, Any]:
    """Numbered, for two files may have the same name."""
    folder = Path(args.out) / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"map": str(folder / f"{number}.nii.gz"), "picture": str(folder / f"{number}.png")}
    write_map(found.values, found.grid, Path(files["map"]), overwrite=True)
    Path(files["picture"]).write_bytes(found.png)
    return {"explanation": {**found.facts, "files": files}}


def _write_table(path: Path, rows: list[dict[str, Any]], card: ModelCard) -> None:
    """One line per file: what is said of each target, preprocessing, warnings, and the reason where it was refused."""
    if card.ageing is not None:
        write_age_table(path, rows)
        return
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        said = [name for number, target in enumerate(card.targets) for name in _columns(target, is_main=number == 0)]
        gaps = tuple(f"gap_{name}" for name in _GAPS[1:]) if card.tells_age else ()
        said += ["true_age_years", *gaps] if gaps else []
        table.writerow(["scan", *said, "profile", "profile_sha256", "warnings", "refusal"])
        for row in rows:
            answers = row.get("targets") or [None] * len(card.targets)
            values = [
                value for target, answer in zip(card.targets, answers, strict=True) for value in _values(target, answer)
            ]
            if gaps:
                found = row.get("gap") or {}
                values += ["" if found.get(name) is None else found[name] for name in _GAPS]
            warnings, reason = "; ".join(row.get("warnings", [])), (row["refusal"] or {}).get("text", "")
            profile = (row.get("profile", ""), row.get("profile_sha256", ""))
            table.writerow([row["scan"], *values, *profile, warnings, reason])


def _columns(target: TargetCard, *, is_main: bool) -> list[str]:
    """Of the main target's classes plain names, as there always were."""
    if target.kind == "number":
        return [target.name, *(f"{target.name}_{part}" for part in _PARTS)]
    lead = "" if is_main else f"{target.name}_"
    return [f"{lead}label", *(f"{lead}probability_{name}" for name in target.classes)]


def _values(target: TargetCard, answer: dict[str, Any] | None) -> list[Any]:
    if answer is None:
        return [""] * len(_columns(target, is_main=True))
    if target.kind == "number":
        interval = answer["interval"] or {}
        found = [interval.get(part) for part in _PARTS[:3]] + [answer["spread"], answer["model_spread"]]
        return [answer["value"], *("" if value is None else value for value in found)]
    return [answer["label"], *(answer["probabilities"][name] for name in target.classes)]


def _tell(rows: list[dict[str, Any]], out: Path) -> str:
    lines = []
    for row in rows:
        if row["refusal"]:
            lines.append(f"{row['scan']}: refused: {row['refusal']['text']}")
        else:
            answered, *facts = _tell_answered(row)
            lines.append(f"{row['scan']}: {answered}")
            lines += [*facts, *(f"  note: {warning}" for warning in row["warnings"])]
    return "\n".join([*lines, f"written to {out / 'predictions.json'}, {out / 'predictions.csv'} and {out / PAGE}"])


def _tell_answered(row: dict[str, Any]) -> list[str]:
    """The answer, then its gap and its map, where there are any."""
    if "ageing" in row:
        return tell_age_row(row)
    gap = [_tell_gap(row["gap"])] if row["gap"] else []
    drawn = [_tell_map(row["explanation"])] if "explanation" in row else []
    return [", ".join(map(_tell_target, row["targets"])), *gap, *drawn]


def _tell_map(found: dict[str, Any]) -> str:
    exact = f", completeness error {found['completeness_error']:.2%}" if "completeness_error" in found else ""
    return f"  map of {found['target']} by {found['method']}{exact}: {found['files']['map']}"


def _tell_gap(gap: dict[str, Any]) -> str:
    bounds = gap["interval"]
    within = "" if bounds is None else f" ({bounds['low']:+.1f} to {bounds['high']:+.1f})"
    raw = f"  gap: raw {gap['raw_years']:+.1f} years{within} at {gap['age_years']:g} years"
    if gap["beheshti_years"] is None:
        return f"{raw}; {gap['no_correction']}"
    groups = ", ".join(gap["controls"]) or "all groups"
    corrected = f"{gap['beheshti_years']:+.1f} years (Beheshti)"
    corrected += "" if gap["cole_years"] is None else f", {gap['cole_years']:+.1f} years (Cole)"
    people = f"{gap['num_controls']} people of {groups}, {gap['fitted_on'].replace('_', ' ')}"
    return f"{raw}; corrected {corrected}, by a line through {people}"


def _tell_target(answer: dict[str, Any]) -> str:
    models = answer["model_spread"]
    over = "" if models is None else f", \N{PLUS-MINUS SIGN} {models:.3g} over {answer['num_models']} models"
    if answer["label"] is not None:
        return f"{answer['label']} (probability {answer['probabilities'][answer['label']]:.3f}{over})"
    spread = "" if answer["spread"] is None else f", \N{PLUS-MINUS SIGN} {answer['spread']:.3g} over windows"
    unit = f" {answer['unit']}" if answer["unit"] else ""
    return f"{answer['name']} {answer['value']:.4g}{unit} ({_tell_interval(answer)}){over}{spread}"


def _tell_interval(answer: dict[str, Any]) -> str:
    found = answer["interval"]
    if found is None:
        return answer["no_interval"]
    return (
        f"{found['level']:.0%} interval {found['low']:.4g} to {found['high']:.4g}, "
        f"by the errors in {found['num_people']} people"
    )
