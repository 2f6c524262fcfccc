"""`neuroray doctor`: tell what would run on this machine, and why."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Any, Literal

from neuroray.jobs.run_record import git_commit, package_versions, record_answer

_OPERATIONS = ("selective_scan", "causal_conv", "attention_pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """What would run on this machine, and why; exit code 1 where something that every job needs is missing."""

    out: str | None = None
    """A folder for run.json with the answer; none is written when not given."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the answer."""

    topic: str
    state: Literal["ok", "note", "missing"]
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All findings, and the versions they were made with."""

    findings: tuple[Finding, ...]
    versions: dict[str, str]
    git_commit: str | None

    @property
    def exit_code(self) -> int:
        """1 where something is missing that every job needs."""
        return int(any(finding.state == "missing" for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        width = max(len(finding.topic) for finding in self.findings)
        lines = [f"{finding.state:<8}{finding.topic:<{width}}  {finding.what}" for finding in self.findings]
        return "\n".join([*lines, "", "  ".join(f"{name} {version}" for name, version in self.versions.items())])


def run(args: Args) -> Answer:
    """Looks at the machine; starts nothing."""
    return record_answer(args.out, job="doctor", args=args, look=_look)


def _look() -> Answer:
    findings = (_python(), *_processors(), _accelerator(), *_kernels(), *_options(), _weights(), _object_storage())
    return Answer(findings=findings, versions=package_versions(), git_commit=git_commit())


def _python() -> Finding:
    needed = ("ray", "torch", "timm", "zarr", "nibabel", "deltalake", "obstore")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        return Finding(topic="packages", state="missing", what=f"{', '.join(absent)}: make test installs them")
    return Finding(topic="packages", state="ok", what="all that the jobs need is installed")


def _processors() -> tuple[Finding, Finding]:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    free_gib = shutil.disk_usage(".").free / 2**30
    return (
        Finding(topic="processor", state="ok", what=f"{cores} cores, {memory_gib:.0f} GiB of memory"),
        Finding(topic="disk", state="ok" if free_gib > 10 else "note", what=f"{free_gib:.0f} GiB free here"),
    )


def _accelerator() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(topic="accelerator", state="note", what="no CUDA device: training uses gloo on the processor")
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Finding(topic="accelerator", state="ok", what=f"{names}: training uses nccl")


def _kernels() -> tuple[Finding, ...]:
    """What each operation would run here, and what stands in the way of the rest."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings = []
    for name in _OPERATIONS:
        operation = importlib.import_module(f"neuroray.kernels.{name}.api")
        chosen = operation.choose_implementation("auto", device, torch.float32)
        obstacles = {
            other: implementation.find_obstacle(device, torch.float32)
            for other, implementation in operation.IMPLEMENTATIONS.items()
        }
        able = [other for other, obstacle in obstacles.items() if obstacle is None and other != chosen]
        what = [f"auto runs {chosen!r} on {device}; by name also {', '.join(able)}"]
        what += [f"not {other}: {obstacle}" for other, obstacle in obstacles.items() if obstacle is not None]
        findings.append(Finding(topic=name, state="ok", what="; ".join(what)))
    return tuple(findings)


def _options() -> tuple[Finding, ...]:
    extras = {"ants": ("ants", "registration and bias correction"), "mamba_ssm": ("mamba", "the peer of our scan")}
    return tuple(
        Finding(topic=name, state="ok", what=f"installed: {purpose}")
        if importlib.util.find_spec(name)
        else Finding(topic=name, state="note", what=f"not installed ({purpose}); extra [{extra}]")
        for name, (extra, purpose) in extras.items()
    )


def _weights() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true", "TRUE", "yes", "ON"):
        return Finding(topic="weights", state="note", what="HF_HUB_OFFLINE is set: encoders by local file or random")
    return Finding(topic="weights", state="ok", what="encoders by name are fetched once from the Hugging Face hub")


def _object_storage() -> Finding:
    named = [
        name for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN") if name in os.environ
    ]
    if not named:
        return Finding(topic="object storage", state="note", what="no S3 settings in the environment; file:// works")
    return Finding(topic="object storage", state="ok", what=f"S3 settings from {', '.join(named)}")
