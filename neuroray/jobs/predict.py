"""`neuroray predict`: answers for scan files with a trained model; a refused file is listed, and the rest goes on."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.errors import NeurorayError
from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.serve.predictor import Predictor, load_predictor
from neuroray.storage.nifti import read_scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Predict for scan files. Exit code 1 when any of them was refused; the others are answered all the same."""

    model: Annotated[str, tyro.conf.Positional]
    """A RUN folder or an exported model folder."""

    scans: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NIfTI or MGZ files."""

    out: str = "runs/predict"
    """Where predictions.json, predictions.csv and run.json go."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Answers for each file and writes what came of it."""
    out = Path(args.out)
    with record_run(out, job="predict", args=args) as record:
        predictor = load_predictor(args.model, device=args.device)
        rows = [_answer_file(predictor, path) for path in progress(args.scans, label="predict")]
        refused = [row for row in rows if row["refusal"] is not None]
        answer = {"model": predictor.card.to_json(), "predictions": rows, "num_refused": len(refused)}
        (out / "predictions.json").write_text(json.dumps(answer, indent=2) + "\n")
        _write_table(out / "predictions.csv", rows, predictor.card.classes)
        record.add(model=predictor.card.to_json(), num_scans=len(rows), num_refused=len(refused))
    return answer | {"text": _tell(rows, out), "exit_code": 1 if refused else 0}


def _answer_file(predictor: Predictor, path: str) -> dict[str, Any]:
    try:
        prediction = predictor.predict(read_scan(path)).to_json()
    except NeurorayError as error:
        return {"scan": path, "refusal": error.to_json() | {"text": str(error)}}
    return {"scan": path, "refusal": None} | {name: value for name, value in prediction.items() if name != "model"}


def _write_table(path: Path, rows: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    """One line per file: label, probabilities, preprocessing profile, warnings, and the reason where it was refused."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        named = (f"probability_{name}" for name in classes)
        table.writerow(["scan", "label", *named, "profile", "profile_sha256", "warnings", "refusal"])
        for row in rows:
            probabilities = [row.get("probabilities", {}).get(name, "") for name in classes]
            warnings, reason = "; ".join(row.get("warnings", [])), (row["refusal"] or {}).get("text", "")
            profile = (row.get("profile", ""), row.get("profile_sha256", ""))
            table.writerow([row["scan"], row.get("label", ""), *probabilities, *profile, warnings, reason])


def _tell(rows: list[dict[str, Any]], out: Path) -> str:
    lines = []
    for row in rows:
        if row["refusal"]:
            lines.append(f"{row['scan']}: refused: {row['refusal']['text']}")
        else:
            lines.append(f"{row['scan']}: {row['label']} (probability {row['probabilities'][row['label']]:.3f})")
            lines += [f"  note: {warning}" for warning in row["warnings"]]
    return "\n".join([*lines, f"written to {out / 'predictions.json'} and {out / 'predictions.csv'}"])
