"""`neuroray demo`: the whole way through, from a simulated cohort to a served answer for a real scan."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from neuroray.errors import NeurorayError
from neuroray.jobs import evaluate, explain, extract, ingest, serve, simulate, train
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.recipes import load_recipe
from neuroray.jobs.run_record import record_run
from neuroray.platform.data.splits import SplitConfig
from neuroray.serve.config import ServeConfig

_REAL_T1 = Path(__file__).resolve().parents[2] / "tests/data/pumi/sub-001/anat/sub-001_T1w.nii.gz"
_MAX_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Simulate, ingest, extract, train on two workers, evaluate, explain, serve, and ask about a real T1."""

    out: str = "demo"
    """Where everything goes."""

    store: str | None = None
    """The store, e.g. s3://bucket/prefix; OUT/store when not given."""

    scan: str = str(_REAL_T1)
    """The real scan to ask about at the end."""

    num_subjects: int = 80
    """People to simulate."""

    num_workers: int = 2
    """Training workers."""

    recipe: str = "dinoatten3d:smoke"
    """What to train."""

    seed: int = 0
    """Seed of the cohort, the split and the training."""

    json: bool = False
    """Answer as JSON."""


@dataclass(slots=True)
class _Walk:
    """The steps gone so far, with their times."""

    num_steps: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Announces a step, times it, and says how long it took."""
        print(f"[{len(self.seconds) + 1}/{self.num_steps}] {name}: {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"      {self.seconds[name]:.1f} s", flush=True)


def run(args: Args) -> dict[str, Any]:
    """Calls the jobs one after another, as a person would; a second run finds finished work done."""
    out = Path(args.out).resolve()
    if not Path(args.scan).is_file():
        raise NeurorayError("the demo's real scan is not there", given=args.scan, fix="name one: --scan T1w.nii.gz")
    with record_run(out, job="demo", args=args, seed=args.seed) as record:
        walk = _Walk(num_steps=7)
        prediction = _walk_through(args, walk, out, args.store or str(out / "store"))
        answer = {"prediction": prediction, "seconds": walk.seconds, "places": _places(args, out)}
        record.add(**answer)
    return answer | {"text": _tell(answer)}


def _walk_through(args: Args, walk: _Walk, out: Path, store: str) -> dict[str, Any]:
    # A fifth of the people judge: a tenth of so small a cohort would be eight.
    recipe = dataclasses.replace(load_recipe(args.recipe), seed=args.seed, split=SplitConfig(test_parts=2))
    with walk.step("simulate", f"{args.num_subjects} people grown from the MNI152 anatomy"):
        _show(simulate.run(simulate.Args(out=str(out / "cohort"), num_subjects=args.num_subjects, seed=args.seed)))
    with walk.step("ingest", f"NIfTI to Zarr in {store}"):
        _show(ingest.run(ingest.Args(source=str(out / "cohort"), store=store, out=str(out / "ingest"))))
    # One Ray for all that follows, as on a cluster; each job would start its own otherwise.
    with ensure_ray(num_cpus=args.num_workers + 2):
        with walk.step("extract", f"slice features with {args.num_workers} workers"):
            _show(extract.run(extract.Args(store=store, recipe=args.recipe, workers=args.num_workers)))
        with walk.step("train", f"{args.recipe}, FSDP2 on {args.num_workers} workers"):
            training = train.Args(store=store, out=str(out / "run"), workers=args.num_workers)
            _show(train.run(training, recipe))
        with walk.step("evaluate", "on people that neither training nor selection has seen"):
            _show(evaluate.run(evaluate.Args(run=str(out / "run"), store=store, seed=args.seed)))
        with walk.step("explain", "where in the real T1 the answer comes from"):
            asked = explain.Args(run=str(out / "run"), scan=args.scan, out=str(out / "explain"), seed=args.seed)
            _show(explain.run(asked))
        with walk.step("serve", "Ray Serve on loopback, and one upload of the real T1"):
            return _ask_server(out / "run", Path(args.scan))


def _ask_server(run_folder: Path, scan: Path) -> dict[str, Any]:
    """Posts the scan as any client would."""
    config = ServeConfig(models=serve.name_models([str(run_folder)]))
    with serve.start_server(config) as server, scan.open("rb") as stream:
        url = server.predict_url(server.model_names[0])
        print(f"      POST {url}", flush=True)
        answer = httpx.post(url, files={"file": (scan.name, stream)}, timeout=config.timeout_s, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        raise NeurorayError("the server refused the demo's scan", given=f"{answer.status_code}: {answer.text[:500]}")
    return answer.json()


def _show(answer: object) -> None:
    text = answer["text"] if isinstance(answer, dict) else str(answer)
    print("\n".join(f"      {line}" for line in text.splitlines()[:_MAX_LINES]), flush=True)


def _places(args: Args, out: Path) -> dict[str, str]:
    return {
        "cohort (BIDS)": str(out / "cohort"),
        "store (Zarr, Delta)": args.store or str(out / "store"),
        "run": str(out / "run"),
        "report": str(out / "run/evaluate/report.html"),
        "explanation": str(out / "explain"),
    }


def _tell(answer: dict[str, Any]) -> str:
    prediction = answer["prediction"]
    chances = ", ".join(f"{name} {chance:.3f}" for name, chance in prediction["probabilities"].items())
    lines = ["", f"the served answer for the real T1: {prediction['label']} ({chances})"]
    lines += [f"  warning: {warning}" for warning in prediction["warnings"]]
    lines += ["  a model of a simulated cohort: this says nothing about the person", "", "where everything lies:"]
    lines += [f"  {name:<20} {place}" for name, place in answer["places"].items()]
    total = sum(answer["seconds"].values())
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in answer["seconds"].items())
    return "\n".join([*lines, "", f"seconds: {steps}; {total:.0f} in all"])
