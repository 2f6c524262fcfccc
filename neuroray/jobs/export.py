"""`neuroray export`: write a model folder to hand on: weights, config and a card that says what it is good for."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from neuroray.errors import NeurorayError
from neuroray.jobs.run_record import record_run
from neuroray.platform.brain_age_gap.answer_line import LINE_FILE, parse_answer_line
from neuroray.platform.evaluate.ensemble import CALIBRATION_FILE, find_members, read_ensemble_calibration
from neuroray.platform.evaluate.loaded import AnyModel, load_model, require_answers
from neuroray.platform.evaluate.model_card import render_model_card
from neuroray.platform.generate.ageing_model import AgeingModel, is_ageing_model, load_ageing_model
from neuroray.serve.predictor import read_model_card
from neuroray.storage.checkpoint import CONFIG, WEIGHTS
from neuroray.storage.locations import Location

_CARD = "README.md"
_MOST_TOLD = 4096


class ExportError(NeurorayError, OSError):
    """A folder that cannot take the model, or a copy that answers differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Copy a run's model into a folder of its own, with a model card, and check that the copy answers the same bits."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder; of one with seeds or folds all of them, which answer together, or name one of them."""

    out: str | None = None
    """The folder to write; RUN/export when not given. One that holds the same model is left as it is."""

    report: str | None = None
    """An evaluation's report.json for the card; RUN/evaluate/report.json where it is there."""

    licence: str = "not stated"
    """Licence of the weights, for the card: these are yours to give."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Copies, describes, reloads and compares; of a run of seeds or folds all of them, to answer together."""
    source, out = Path(args.run), Path(args.out) if args.out else Path(args.run) / "export"
    models = _find_models(source)
    configs = {name: json.loads((source / name / CONFIG).read_text()) for name in models}
    for config in configs.values():
        if not is_ageing_model(config):
            require_answers(config)
        elif len(configs) > 1:
            fix = f"name one of them: {source / next(iter(models)).removesuffix('/model')}"
            raise ExportError("trainings that tell brains do not answer together", given=", ".join(models), fix=fix)
    report = _read_report(args)
    # One training lies flat in the folder; several as they lie in the run, where `predict` looks for them.
    places = {name: name if len(models) > 1 else "" for name in models}
    files: dict[str, bytes | Path] = {
        f"{place}/{file}".lstrip("/"): source / name / file
        for name, place in places.items()
        for file in (WEIGHTS, CONFIG)
    }
    files[_CARD] = _render(configs, report, args).encode()
    files |= _find_beside(source, [config["weights"]["sha256"] for config in configs.values()])
    _refuse_other(out, files)
    with record_run(out, job="export", args=args) as record:
        _write_all(out, files)
        probes = [_compare(source / name, out / place) for name, place in places.items()]
        card = read_model_card(str(out))
        answer = {
            "out": str(out),
            "model_name": card.model_name,
            "version": card.version,
            "classes": list(card.classes),
            "num_models": len(models),
            "files": {name: (out / name).stat().st_size for name in files},
            "verified": f"same {' and '.join(probes[0])}, bit for bit, from original and copy",
            "probe": probes[0],
            "has_evaluation": report is not None,
            "has_age_correction": LINE_FILE in files,
        }
        record.add(**answer)
    several = f", {len(models)} models that answer together" if len(models) > 1 else ""
    return answer | {"text": f"{card.model_name} {card.version}{several} written to {out}, checked by reloading"}


def _find_models(source: Path) -> list[str]:
    """The folders of its models, relative to the run: `model`, or those of its seeds and folds.

    Raises:
        ExportError: none, or one that is not finished.
    """
    if (source / "model" / CONFIG).is_file():
        return ["model"]
    found = [f"{member.path}/model" for member in find_members(Location(source))]
    unfinished = [name for name in found if not (source / name / CONFIG).is_file()]
    if not found or unfinished:
        given = str(source / unfinished[0]) if unfinished else str(source)
        raise ExportError("there is no finished run", given=given, expected=f"a folder with model/{CONFIG}")
    return found


def _render(configs: dict[str, dict[str, Any]], report: dict[str, Any] | None, args: Args) -> str:
    first = next(iter(configs.values()))
    text = render_model_card(first, report, licence=args.licence)
    if len(configs) == 1:
        return text
    listed = "\n".join(f"- `{name}`: `{config['weights']['sha256'][:12]}`" for name, config in configs.items())
    return (
        f"{text}\n## Several models\n\n{len(configs)} trainings answer together: the mean, and how far they differ. "
        f"What stands above of one training is that of the first.\n\n{listed}\n"
    )


def _read_report(args: Args) -> dict[str, Any] | None:
    if args.report is not None:
        return json.loads(Path(args.report).read_text())
    beside = Path(args.run) / "evaluate" / "report.json"
    return json.loads(beside.read_text()) if beside.is_file() else None


def _find_beside(source: Path, weights_sha256: list[str]) -> dict[str, bytes | Path]:
    """What answers need besides weights: the line of controls (`neuroray gap`), an ensemble's errors (`evaluate`).

    Raises:
        GapError: a line that was fitted to other weights.
        ExportError: errors that were measured of other weights.
    """
    found: dict[str, bytes | Path] = {}
    line, calibration = source / "gap" / LINE_FILE, source / CALIBRATION_FILE
    if line.is_file():
        parse_answer_line(line.read_bytes(), weights_sha256)
        found[LINE_FILE] = line
    if len(weights_sha256) > 1 and calibration.is_file():
        measured, reason = read_ensemble_calibration(Location(source), weights_sha256)
        if measured is None:
            raise ExportError(f"{calibration} is of other models", given=reason, fix="neuroray evaluate RUN")
        found[CALIBRATION_FILE] = calibration
    return found


def _refuse_other(out: Path, files: dict[str, bytes | Path]) -> None:
    """A folder may be written again with the same model; another model, or anything else in it, is not replaced."""
    known = {*files, LINE_FILE, CALIBRATION_FILE, "run.json"}
    there = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    foreign = sorted(name for name in there if name not in known)
    models = [name for name in files if name.endswith((WEIGHTS, CONFIG))]
    other = [name for name in models if name in there and _digest(out / name) != _digest(files[name])]
    if foreign or other:
        raise ExportError(
            f"{out} holds something else",
            given=", ".join((foreign + other)[:4]),
            expected="a new folder, an empty one, or one with this very model",
            fix="choose another --out",
        )


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(out: Path, files: dict[str, bytes | Path]) -> None:
    """Each file whole, every config.json last: without it the folder holds no model."""
    for name in sorted(files, key=lambda name: name.endswith(CONFIG)):
        path, content = out / name, files[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
            if isinstance(content, bytes):
                partial.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, partial, 2**20)
        # Temporary files are readable by their owner alone; an exported model is to be handed on.
        Path(partial.name).chmod(0o644)
        shutil.move(partial.name, path)


def _compare(source: Path, copy: Path) -> dict[str, Any]:
    """What both answer on an input made up by the model; of whole volumes their digest.

    Raises:
        ExportError: they differ.
    """
    first, second = (_load(folder).probe() for folder in (source, copy))
    if any(not torch.equal(value, second[name]) for name, value in first.items()):
        raise ExportError(f"the copy in {copy} answers differently from the original", fix="export it again")
    return {name: _tell_probed(value) for name, value in first.items()}


def _load(folder: Path) -> AnyModel | AgeingModel:
    if is_ageing_model(json.loads((folder / CONFIG).read_text())):
        return load_ageing_model(str(folder))
    return load_model(folder)


def _tell_probed(value: torch.Tensor) -> list[float] | str:
    if value.numel() <= _MOST_TOLD:
        return value.flatten().tolist()
    return f"SHA-256 {hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}"
