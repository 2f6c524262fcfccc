"""What an answer of a model of windows rests on: its targets as scores, its runs as windows, explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.standardise import standardise
from neuroray.platform.data.targets import Target, slice_outputs
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.explain.integrated import IntegratedConfig, Score
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.runs import RunExplanation, Window, explain_run
from neuroray.platform.explain.saliency import log_odds
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The number that is explained.

    Attributes:
        target: Of the model.
        class_name: Whose log-odds; None for a measure.
        quantity: What a map's values add up to, in words and unit.
        score: From outputs to that number.
    """

    target: str
    class_name: str | None
    quantity: str
    score: Score


def choose_score(model: WindowModel, named: str | None, outputs: Float[Tensor, "window output"]) -> Explained:
    """The number to explain: of the named target or class, else of the main target.

    Of a target with classes it is the log-odds of the named class, or of the likeliest.

    Args:
        model: The model.
        named: A target, or a class of one; None: the main target.
        outputs: Of the run's windows.

    Raises:
        ExplainError: the model has no such target or class.
    """
    targets = model.targets
    owner = {name: index for index, target in reversed(list(enumerate(targets))) for name in target.classes}
    owner |= {target.name: index for index, target in enumerate(targets)}
    if named is not None and named not in owner:
        raise ExplainError("the model has no such target or class", given=named, expected=f"one of {', '.join(owner)}")
    place = owner[named] if named else 0
    target, part = targets[place], slice_outputs(targets)[place]
    if target.kind == "number":
        unit = f", in {target.unit}" if target.unit else ""
        return Explained(
            target=target.name, class_name=None, quantity=f"{target.name}{unit}", score=_number_score(target, part)
        )
    chosen = named if named in target.classes else model.read(outputs)[place].label
    assert chosen is not None
    return Explained(
        target=target.name,
        class_name=chosen,
        quantity=f"log-odds of {target.name} being {chosen}",
        score=_class_score(target, part, target.classes.index(chosen)),
    )


def explain_prepared(
    model: WindowModel, prepared: Prepared, config: IntegratedConfig, *, target: str | None = None
) -> RunExplanation:
    """Explains the answer for a run in memory.

    Raises:
        ScanError: a volume, or a run without spread.
        ExplainError: as `choose_score` and `explain_run`.
    """
    items = model.cover("run", prepared.scan.num_frames)

    def cut() -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        for item, batch in zip(items, model.cut(prepared), strict=True):
            yield item.start or 0, batch

    outputs = model.compute(batch for _, batch in cut())
    return _explain(model, outputs, _standardised(model, cut()), config, target, prepared.scan.num_frames)


def explain_stored(
    model: WindowModel, store: ScanStore, scan_id: str, config: IntegratedConfig, *, target: str | None = None
) -> RunExplanation:
    """Explains the answer for a stored run; one window of it is in memory at a time.

    Raises:
        StoreError: the run cannot be read.
        ExplainError: as `choose_score` and `explain_run`.
    """
    num_frames = store.record(scan_id).shape[0]
    items = model.cover(scan_id, num_frames)
    with_brain = read_model_profile(model.card).name == "fmri_minimal"
    reader = WindowReader(store.uri, store.version, with_brain=with_brain)

    def read() -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        for item in items:
            yield item.start or 0, to_torch(reader.read_batch([item]))

    outputs = model.compute(batch for _, batch in read())
    return _explain(model, outputs, _standardised(model, read()), config, target, num_frames)


def _explain(
    model: WindowModel,
    outputs: Float[Tensor, "window output"],
    windows: Iterable[Window],
    config: IntegratedConfig,
    target: str | None,
    num_frames: int,
) -> RunExplanation:
    chosen = choose_score(model, target, outputs)
    return explain_run(model.module, windows, config, score=chosen.score, target=chosen.quantity, num_frames=num_frames)


def _standardised(model: WindowModel, batches: Iterable[tuple[int, Mapping[str, Tensor]]]) -> Iterator[Window]:
    for first_frame, batch in batches:
        there = {name: value.to(model.device) for name, value in batch.items()}
        yield Window(
            voxels=standardise(there, config=model.standard)[0],
            first_frame=first_frame,
            frame_mask=there["frame_mask"][0],
            background=model.standard.background,
        )


def _number_score(target: Target, part: slice) -> Score:
    def take(outputs: Tensor) -> Tensor:
        return outputs[:, part.start] * target.std + target.mean

    return take


def _class_score(target: Target, part: slice, index: int) -> Score:
    def take(outputs: Tensor) -> Tensor:
        own = outputs[:, part]
        if own.shape[1] > 1:
            return log_odds(own, index)
        # One logit for two classes is the log-odds of the last.
        return own[:, 0] if index == 1 else -own[:, 0]

    return take
