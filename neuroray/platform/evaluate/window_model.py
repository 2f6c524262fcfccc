"""A trained model of windows of runs: covering windows, their outputs, and what these say together of a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.standardise import StandardiseConfig, read_standard, standardise
from neuroray.platform.data.targets import Target, slice_outputs
from neuroray.platform.data.windows import WindowConfig, cover_run
from neuroray.platform.evaluate.conformal import NOT_RECORDED, PredictionInterval, read_calibrations
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.scan import ScanError

WindowModule = Any
"""An `nn.Module` that takes `batch time x y z` and gives `outputs`."""

_PROBE_SHAPE: Final = (1, 5, 33, 35, 31)
_PROBE_SEED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetAnswer:
    """What a model says of one target: the mean over the windows of a run.

    Attributes:
        name: The target.
        probabilities: Class to probability; empty for a measure.
        value: Of a measure, in its own unit; None for classes.
        unit: Of the value.
        interval: Of a measure: where the truth lies, by the errors in validation people; None where there is none.
        no_interval: Of a measure without an interval: why, as a sentence that begins with "no interval".
        quantiles: Of a measure, where the model tells them: level ("0.05") to value, in rising order.
        spread: Standard deviation over windows, of the value or of the likeliest class's probability; None of one
            window. It tells how much the answer changes within the run, not how far it is from the truth.
        num_windows: How many windows there were.
        num_models: Of how many trainings it is the mean.
        model_spread: Standard deviation over these (n - 1), of the value or of the likeliest class's probability; None
            of one. Where they differ more than elsewhere, the people of the training tell less of this one.
    """

    name: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    unit: str = ""
    interval: PredictionInterval | None = None
    no_interval: str | None = None
    quantiles: Mapping[str, float] = field(default_factory=dict)
    spread: float | None = None
    num_windows: int = 1
    num_models: int = 1
    model_spread: float | None = None

    @property
    def label(self) -> str | None:
        """The most probable class; None for a measure."""
        return max(self.probabilities, key=lambda name: self.probabilities[name]) if self.probabilities else None

    def to_json(self) -> dict[str, Any]:
        """All of it, and the label."""
        return {**dataclasses.asdict(self), "label": self.label}


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowModel:
    """A model of windows with its card.

    Attributes:
        module: In eval mode, no parameter asks for a gradient.
        card: `config.json` of the model folder: `targets`, `windows`, `runs`, and what all cards have.
        provenance: How it came about.
    """

    module: WindowModule
    card: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @classmethod
    def build(cls, config: Any) -> nn.Module:
        """The module of a configuration."""
        return config.build()

    @property
    def targets(self) -> tuple[Target, ...]:
        """What it answers for, the main one first."""
        return tuple(Target.from_json(described) for described in self.card["targets"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def num_frames(self) -> int | None:
        """Of a window; None: whole runs."""
        return WindowConfig.from_json(self.card["windows"]).num_frames

    @property
    def standard(self) -> StandardiseConfig:
        """How its windows are prepared."""
        return read_standard(self.card)

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """What it answers on a window made up here, the same everywhere."""
        window = torch.randn(_PROBE_SHAPE, generator=torch.Generator().manual_seed(_PROBE_SEED))
        return {"outputs": self.module(window.to(self.device)).outputs[0].cpu()}

    def cover(self, scan_id: str, num_frames: int) -> list[ReadItem]:
        """The windows of a run of which every frame is in one; a run shorter than a window is padded."""
        config = WindowConfig.from_json(self.card["windows"])
        if config.num_frames is None:
            return [ReadItem(scan_id=scan_id, start=0, stop=num_frames)]
        return cover_run(scan_id, num_frames, dataclasses.replace(config, short="pad"))

    def cut(self, prepared: Prepared) -> Iterator[dict[str, Tensor]]:
        """The covering windows of a run in memory, each a batch of one as `WindowReader` gives it.

        Raises:
            ScanError: a volume, or a run whose values are all alike.
        """
        scan, found = prepared.scan, prepared.statistics
        if not scan.is_timeseries:
            raise ScanError("this model answers for runs, not for single volumes", given="one volume")
        if found is None or not found.std > 0:
            raise ScanError("a run without spread has no z-scores", given="all values alike", expected="a BOLD run")
        one = torch.ones(1, dtype=torch.float64)
        facts = {"slope": one, "intercept": 0 * one, "mean": found.mean * one, "std": found.std * one}
        facts["minimum"] = found.min * one
        if prepared.mask is not None:
            facts["brain"] = torch.from_numpy(np.array(prepared.mask))[None]
        for item in self.cover("run", scan.num_frames):
            start, stop = item.start or 0, item.stop or scan.num_frames
            window = torch.zeros((1, stop - start + item.padding, *scan.grid_shape))
            window[0, : stop - start] = torch.from_numpy(np.array(scan.voxels[start:stop], dtype=np.float32))
            mask = torch.arange(window.shape[1])[None] < stop - start
            yield {"voxels": window, "frame_mask": mask, **facts}

    @torch.no_grad()
    def compute(self, batches: Iterable[Mapping[str, Tensor]]) -> Float[Tensor, "window output"]:
        """The outputs of all windows, one batch after the other, in float64 on the CPU."""
        rows = []
        for batch in batches:
            there = {name: value.to(self.device) for name, value in batch.items()}
            rows.append(self.module(standardise(there, config=self.standard)).outputs.double().cpu())
        return torch.cat(rows)

    def read(self, outputs: Float[Tensor, "window output"]) -> tuple[TargetAnswer, ...]:
        """What the windows of one run say of each target, measures with the interval that the model was saved with."""
        return tuple(bound_answer(answer, self.provenance) for answer in read_outputs(self.targets, outputs))


def bound_answer(answer: TargetAnswer, provenance: Mapping[str, Any]) -> TargetAnswer:
    """The answer with the interval that the model was saved with, or the reason why there is none; classes as is."""
    if answer.value is None:
        return answer
    found = read_calibrations(provenance).get(answer.name)
    if found is None:
        return dataclasses.replace(answer, no_interval=NOT_RECORDED)
    return dataclasses.replace(answer, interval=found.around(answer.value), no_interval=found.reason)


def read_outputs(targets: Sequence[Target], outputs: Float[Tensor, "window output"]) -> tuple[TargetAnswer, ...]:
    """The mean over windows: of probabilities, or of numbers in the target's unit."""
    parts = zip(targets, slice_outputs(targets), strict=True)
    return tuple(_read_target(target, outputs[:, part]) for target, part in parts)


def _read_target(target: Target, outputs: Float[Tensor, "window output"]) -> TargetAnswer:
    num_windows = len(outputs)
    if target.kind == "number":
        numbers = target.numbers(outputs)
        return TargetAnswer(
            name=target.name,
            value=float(numbers.mean()),
            unit=target.unit,
            spread=float(numbers.std()) if num_windows > 1 else None,
            num_windows=num_windows,
        )
    each = target.probabilities(outputs)
    mean = each.mean(dim=0)
    spread = float(each[:, int(mean.argmax())].std()) if num_windows > 1 else None
    probabilities = dict(zip(target.classes, mean.tolist(), strict=True))
    return TargetAnswer(name=target.name, probabilities=probabilities, spread=spread, num_windows=num_windows)
