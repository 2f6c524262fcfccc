"""A trained model that tells a measure, an age say, or classes, from the map of a volume's slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroray.platform.data.targets import Target
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.slice_model import require_volume
from neuroray.platform.evaluate.window_model import TargetAnswer, bound_answer
from neuroray.platform.models.brainrotvit import encode_sex
from neuroray.platform.models.layers.slices import SlicePlan
from neuroray.storage.features import FeatureStore
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

# Odd lengths, and not the same to the left as to the right.
_PROBE_SHAPE: Final = (61, 73, 65)
_PROBE_SEED: Final = 20

MeasureModule = Any
"""An `nn.Module` with `config.slices`, `encoder`, `head(features, sex)` and `encode(volume)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMeasureModel:
    """A model of slices that answers with a number, with its card.

    Attributes:
        module: In eval mode, no parameter asks for a gradient.
        card: `config.json` of the model folder: `targets`, `quantiles`, `people`, and what all cards have.
        provenance: How it came about.
    """

    module: MeasureModule
    card: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @classmethod
    def build(cls, config: Any) -> nn.Module:
        """The module of a configuration, its encoder's weights not looked for."""
        return config.build(load_weights=False)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What it answers for."""
        return tuple(Target.from_json(described) for described in self.card["targets"])

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Of which its outputs are, in rising order; empty: one output, the mean."""
        return tuple(self.card.get("quantiles", ()))

    @property
    def slices(self) -> SlicePlan:
        """How a volume becomes pictures."""
        return self.module.config.slices

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def explained(self) -> str:
        """What a map of it is a map of, in words."""
        return self.targets[0].name

    def aim(self, at: str | None) -> Self:
        """To explain this; None: what it tells.

        Raises:
            EvaluationError: it tells no such thing.
        """
        told = self.targets[0].name
        if at not in (None, told):
            raise EvaluationError("the model tells another number, and no classes", given=at, expected=told)
        return self

    def settle(self, scan: Scan, sex: str | None) -> Self:
        """To explain what it says of this scan, whatever happens to its weights."""
        del scan, sex
        return self

    def pick_explained(self, outputs: Float[Tensor, " output"]) -> Float[Tensor, ""]:
        """The number that a map explains, of the head's outputs for one person: the mean, or the median."""
        # Quantiles of their own may cross: the answer is the median of them in rising order.
        return outputs.sort().values[self.quantiles.index(0.5)] if self.quantiles else outputs[0]

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """What it answers on a volume made up here, the same everywhere."""
        volume = torch.rand(_PROBE_SHAPE, generator=torch.Generator().manual_seed(_PROBE_SEED))
        return {"outputs": self.module(volume[None].to(self.device)).outputs[0].cpu()}

    @torch.no_grad()
    def encode(self, scan: Scan) -> Float[Tensor, "slice channel"]:
        """The map of a scan by the frozen encoder.

        Raises:
            ScanError: a time series.
            ModelError: a volume in which nothing stands out.
        """
        require_volume(scan)
        voxels = torch.tensor(np.asarray(scan.voxels, dtype=np.float32), device=self.device)
        return self.module.encode(voxels, spacing_mm=scan.zooms_mm).features

    @torch.no_grad()
    def answer(self, features: Float[Tensor, "slice channel"], sex: str | None) -> TargetAnswer:
        """What it says of a map; without a sex (`M`, `F`), the mean of what it says for both."""
        known = torch.tensor([encode_sex(sex)], device=self.device)
        outputs = self.module.head(features[None].to(self.device), known).outputs[0].double().cpu()
        target = self.targets[0]
        if not self.quantiles:
            said = TargetAnswer(name=target.name, value=float(outputs[0]), unit=target.unit)
            return bound_answer(said, self.provenance)
        # Outputs of their own may cross; in rising order they are quantiles again, and never worse ones.
        rising = dict(zip(self.quantiles, outputs.sort().values.tolist(), strict=True))
        told = {f"{level:g}": value for level, value in rising.items()}
        said = TargetAnswer(name=target.name, value=rising[0.5], unit=target.unit, quantiles=told)
        return bound_answer(said, self.provenance)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceClassModel(SliceMeasureModel):
    """The same with classes in place of a number.

    Attributes:
        of_class: The class to explain; None: the last of two, the likeliest of more.
    """

    of_class: str | None = None

    @property
    def explained(self) -> str:
        """The logarithm of a class's odds."""
        target = self.targets[0]
        of = self.of_class or (target.classes[-1] if len(target.classes) == 2 else "the likeliest class")
        return f"log-odds of {of} in {target.name}"

    def aim(self, at: str | None) -> Self:
        """To explain this class.

        Raises:
            EvaluationError: there is none.
        """
        target = self.targets[0]
        if at in (None, target.name):
            return self
        if at not in target.classes:
            raise EvaluationError("the model knows no such class", given=at, expected=", ".join(target.classes))
        return dataclasses.replace(self, of_class=at)

    def settle(self, scan: Scan, sex: str | None) -> Self:
        """To explain the class that it says of this scan; of two the last, whichever is said."""
        if self.of_class is not None or len(self.targets[0].classes) == 2:
            return self
        return dataclasses.replace(self, of_class=self.answer(self.encode(scan), sex).label)

    def pick_explained(self, outputs: Float[Tensor, " output"]) -> Float[Tensor, ""]:
        """The logarithm of the class's odds against all others."""
        classes = self.targets[0].classes
        if len(outputs) == 1:
            return -outputs[0] if self.of_class == classes[0] else outputs[0]
        number = int(outputs.argmax()) if self.of_class is None else classes.index(self.of_class)
        others = torch.cat([outputs[:number], outputs[number + 1 :]])
        return outputs[number] - others.logsumexp(0)

    @torch.no_grad()
    def answer(self, features: Float[Tensor, "slice channel"], sex: str | None) -> TargetAnswer:
        """Probabilities for a map; without a sex (`M`, `F`), the mean of those for both."""
        known = torch.tensor([encode_sex(one) for one in ((sex,) if sex in ("M", "F") else ("M", "F"))])
        maps = features[None].to(self.device).expand(len(known), -1, -1)
        target = self.targets[0]
        said = target.probabilities(self.module.head(maps, known.to(self.device)).outputs).mean(dim=0).cpu()
        return TargetAnswer(name=target.name, probabilities=dict(zip(target.classes, said.tolist(), strict=True)))


def judge_measures(
    model: SliceMeasureModel,
    store: ScanStore,
    scan_ids: Sequence[str],
    *,
    track: Callable[[Sequence[str]], Iterable[str]] | None = None,
) -> Iterator[tuple[str, tuple[TargetAnswer, ...]]]:
    """What the model says of each scan, from cached features where they are there, else from voxels."""
    records: dict[str, ScanRecord] = {record.scan_id: record for record in store.records()}
    cache = FeatureStore(store, str(model.card["feature_fingerprint"]))
    missing = set(cache.missing(scan_ids))
    for scan_id in track(scan_ids) if track else scan_ids:
        if scan_id in missing:
            features = model.encode(store.read(scan_id))
        else:
            features = torch.from_numpy(np.array(cache.read(scan_id).features))
        yield scan_id, (model.answer(features, records[scan_id].sex),)
