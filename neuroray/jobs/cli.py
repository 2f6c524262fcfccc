"""`neuroray <job>`: one dict from command to module; a job is imported only when it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import neuroray
from neuroray.config import ConfigError
from neuroray.errors import NeurorayError
from neuroray.jobs.logs import set_up_logging

JOBS = {
    "simulate": "write a simulated cohort with known ground truth as a BIDS folder",
    "ingest": "bring scans into a store",
    "inspect": "show what a store or a scan file holds",
    "stats": "count a store's people, scans, ages, labels and grids",
    "qc": "measure every scan and show who stands apart",
    "verify": "read every byte of a store and check it",
    "remove": "withdraw people from a store, from all of its versions",
    "extract": "compute and cache slice features",
    "connectivity": "label every run with the connectivity between networks, for a model to learn",
    "train": "fit a recipe, or resume it",
    "evaluate": "judge a run on people it has not seen",
    "baselines": "what simple predictors on connectivity or volumes reach, beside a run or alone",
    "gap": "the brain age gap of a run, raw and corrected, and what it goes with",
    "explain": "show what a prediction rests on, in scan space",
    "predict": "answer for scan files",
    "generate": "show the same brain at other ages",
    "check-ageing": "three experiments that a model of brains at other ages must pass",
    "export": "write a model folder to hand on",
    "export-nifti": "write a store's scans back as the files they came from",
    "serve": "answer over HTTP with Ray Serve",
    "demo": "the whole way through, from a simulated cohort to a served answer",
    "doctor": "tell what would run on this machine, and why",
}

_USAGE_EXIT, _FAILURE_EXIT = 2, 1


class UsageError(NeurorayError, ValueError):
    """The command line itself is wrong: exit code 2."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one job and leaves with 0 (done), 1 (failed) or 2 (wrong use); one line says why.

    A traceback is shown only with `--debug`.
    """
    arguments, options = _split_options(list(sys.argv[1:] if argv is None else argv))
    set_up_logging(as_json=options.log == "json", debug=options.debug)
    try:
        code = _dispatch(arguments)
    except (UsageError, ConfigError) as error:
        code = _report(error, _USAGE_EXIT, debug=options.debug)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = _FAILURE_EXIT
    except Exception as error:
        code = _report(error, _FAILURE_EXIT, debug=options.debug)
    sys.exit(code)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    log: str = "text"
    debug: bool = False


def _split_options(arguments: list[str]) -> tuple[list[str], _Options]:
    """`--debug` and `--log json|text` belong to every job and may stand anywhere."""
    rest, log, debug, index = [], "text", False, 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            rest += arguments[index:]
            break
        if word == "--debug":
            debug = True
        elif word == "--log" and index + 1 < len(arguments):
            index += 1
            log = arguments[index]
        elif word.startswith("--log="):
            log = word.removeprefix("--log=")
        else:
            rest.append(word)
        index += 1
    if log not in ("text", "json"):
        print(f"neuroray: --log given {log!r}; expected text or json", file=sys.stderr)
        sys.exit(_USAGE_EXIT)
    return rest, _Options(log=log, debug=debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else _USAGE_EXIT
    if arguments[0] in ("--version", "-V"):
        print(f"neuroray {neuroray.__version__}")
        return 0
    job, rest = arguments[0], arguments[1:]
    if job not in JOBS:
        raise UsageError(f"there is no job {job!r}", expected=f"one of {', '.join(JOBS)}", fix=_nearest(job))
    module = importlib.import_module(f"neuroray.jobs.{job.replace('-', '_')}")
    if hasattr(module, "main"):
        return _show(module.main(rest), as_json="--json" in rest)
    args = parse_args(module.Args, rest, prog=f"neuroray {job}", description=module.__doc__)
    return _show(module.run(args), as_json=getattr(args, "json", False))


def parse_args[T](kind: type[T], arguments: Sequence[str], *, prog: str, description: str | None, **options: Any) -> T:
    """Makes the command line of a frozen dataclass, by tyro.

    Raises:
        UsageError: for wrong use, with tyro's own words brought into one line.
        SystemExit: 0, after `--help`.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=prog,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                **options,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UsageError(_in_one_line(complaint.getvalue()), fix=f"see {prog} --help") from None


def _in_one_line(boxed: str) -> str:
    """What stands between the box's top and its first rule, without the box."""
    lines = [line.strip("│ ").strip() for line in boxed.splitlines() if not line.startswith(("╭", "╰"))]
    cause = itertools.takewhile(lambda line: not line.startswith("─"), lines)
    return " ".join(line for line in cause if line)


def _show(answer: Any, *, as_json: bool) -> int:
    """Prints a job's answer: JSON on request, else its own text; an answer may carry its exit code."""
    if answer is None:
        return 0
    if isinstance(answer, int):
        return answer
    if as_json:
        print(json.dumps(answer.to_json() if hasattr(answer, "to_json") else answer, indent=2, default=str))
    elif not isinstance(answer, dict):
        print(answer)
    elif "text" in answer:
        print(answer["text"])
    else:
        print("\n".join(f"{name}: {value}" for name, value in answer.items() if name != "exit_code"))
    return int(answer.get("exit_code", 0)) if isinstance(answer, dict) else int(getattr(answer, "exit_code", 0))


def _overview() -> str:
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:<{width}}  {what}" for name, what in JOBS.items())
    return (
        "usage: neuroray <job> [arguments]\n\n"
        "Train and serve brain-imaging models on volumes, with Ray.\n\n"
        f"jobs:\n{jobs}\n\n"
        "  neuroray <job> --help     what a job takes\n"
        "  --log json                one JSON object per line in place of progress and text logs\n"
        "  --debug                   the whole traceback when something fails\n"
        "  --version"
    )


def _nearest(job: str) -> str | None:
    import difflib

    close = difflib.get_close_matches(job, JOBS, n=1)
    return f"neuroray {close[0]}" if close else "neuroray --help"


def _report(error: Exception, code: int, *, debug: bool) -> int:
    logging.getLogger("neuroray").debug("failed", exc_info=error)
    if debug:
        traceback.print_exception(error)
    elif isinstance(error, NeurorayError):
        print(f"neuroray: {error}", file=sys.stderr)
    else:
        line = " ".join(str(error).split())
        print(f"neuroray: {type(error).__name__}: {line} (--debug shows where)", file=sys.stderr)
    return code
