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
from neuroray.platform.evaluate.loaded import load_model, require_answers
from neuroray.platform.evaluate.model_card import render_model_card
from neuroray.storage.checkpoint import CONFIG, WEIGHTS

_CARD = "README.md"
_VERSION_DIGITS = 12


class ExportError(NeurorayError, OSError):
    """A folder that cannot take the model, or a copy that answers differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Copy a run's model into a folder of its own, with a model card, and check that the copy answers the same bits."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder, or one fold of it."""

    out: str | None = None
    """The folder to write; RUN/export when not given. One that holds the same model is left as it is."""

    report: str | None = None
    """An evaluation's report.json for the card; RUN/evaluate/report.json where it is there."""

    licence: str = "not stated"
    """Licence of the weights, for the card: these are yours to give."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Copies, describes, reloads and compares."""
    source = Path(args.run) / "model"
    if not (source / CONFIG).is_file():
        raise ExportError("there is no finished run", given=args.run, expected=f"a folder with model/{CONFIG}")
    out = Path(args.out) if args.out else Path(args.run) / "export"
    config = json.loads((source / CONFIG).read_text())
    require_answers(config)
    report = _read_report(args)
    files = {name: (source / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    files[_CARD] = render_model_card(config, report, licence=args.licence).encode()
    files |= _find_line(Path(args.run), config)
    _refuse_other(out, files)
    with record_run(out, job="export", args=args) as record:
        _write_all(out, files)
        probe = _compare(source, out)
        version = hashlib.sha256(files[WEIGHTS]).hexdigest()[:_VERSION_DIGITS]
        answer = {
            "out": str(out),
            "model_name": config["model_name"],
            "version": version,
            "classes": config["classes"],
            "files": {name: len(data) for name, data in files.items()},
            "verified": f"same {' and '.join(probe)}, bit for bit, from original and copy",
            "probe": probe,
            "has_evaluation": report is not None,
            "has_age_correction": LINE_FILE in files,
        }
        record.add(**answer)
    return answer | {"text": f"{config['model_name']} {version} written to {out}, checked by reloading"}


def _read_report(args: Args) -> dict[str, Any] | None:
    if args.report is not None:
        return json.loads(Path(args.report).read_text())
    beside = Path(args.run) / "evaluate" / "report.json"
    return json.loads(beside.read_text()) if beside.is_file() else None


def _find_line(run_folder: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The line of controls that `neuroray gap` fitted to what these weights said, so that the copy corrects gaps too.

    Raises:
        GapError: a line that was fitted to other weights.
    """
    path = run_folder / "gap" / LINE_FILE
    if not path.is_file():
        return {}
    content = path.read_bytes()
    parse_answer_line(content, [config["weights"]["sha256"]])
    return {LINE_FILE: content}


def _refuse_other(out: Path, files: dict[str, bytes]) -> None:
    """A folder may be written again with the same model; another model, or anything else in it, is not replaced."""
    known = {*files, LINE_FILE, "run.json"}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in known) if out.is_dir() else []
    other = [name for name in (WEIGHTS, CONFIG) if (out / name).is_file() and (out / name).read_bytes() != files[name]]
    if foreign or other:
        raise ExportError(
            f"{out} holds something else",
            given=", ".join((foreign + other)[:4]),
            expected="a new folder, an empty one, or one with this very model",
            fix="choose another --out",
        )


def _write_all(out: Path, files: dict[str, bytes]) -> None:
    """Each file whole, config.json last: without it the folder holds no model."""
    for name in sorted(files, key=lambda name: name == CONFIG):
        with tempfile.NamedTemporaryFile(dir=out, prefix=f".{name}.", delete=False) as partial:
            partial.write(files[name])
        # Temporary files are readable by their owner alone; an exported model is to be handed on.
        Path(partial.name).chmod(0o644)
        shutil.move(partial.name, out / name)


def _compare(source: Path, copy: Path) -> dict[str, list[float]]:
    """What both answer on an input made up by the model.

    Raises:
        ExportError: they differ.
    """
    first, second = (load_model(folder).probe() for folder in (source, copy))
    if any(not torch.equal(value, second[name]) for name, value in first.items()):
        raise ExportError(f"the copy in {copy} answers differently from the original", fix="export it again")
    return {name: value.flatten().tolist() for name, value in first.items()}
