"""What goes over the wire: the answers of `/v1`, with examples that the documentation page shows."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.serve import examples
from neuroray.serve.age_gap import GapAnswer
from neuroray.serve.packed_ages import PackedAge, PackedAges, PackedFile
from neuroray.serve.packed_map import PackedMap, PackedReply
from neuroray.serve.prediction import ModelCard, TargetCard


class TargetDescription(BaseModel):
    """One thing that a model answers for."""

    name: str
    kind: str = Field(description="class, or number")
    classes: list[str] = Field(description="of a class target, in the order of the outputs")
    unit: str = Field(description="of a number; empty where it has none")

    @classmethod
    def of(cls, card: TargetCard) -> TargetDescription:
        """What is told of a target."""
        return cls(name=card.name, kind=card.kind, classes=list(card.classes), unit=card.unit)


class ModelAnswer(BaseModel):
    """One model that this service has loaded."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.MODEL]})

    name: str = Field(description="its name in the URL")
    kind: str = Field(description="the architecture")
    version: str = Field(description="the first twelve digits of the SHA-256 of its weights")
    classes: list[str] = Field(description="of the main target; empty where it is a number")
    target: str = Field(description="the main target: what the classes are values of, or the number")
    targets: list[TargetDescription] = Field(description="all that it answers for, the main one first")
    modality: str = Field(description="the BIDS suffix of the scans it was trained on")
    profile: str = Field(description="the preprocessing profile of those scans")
    profile_sha256: str = Field(description="hash of that profile: its options, and the versions that it ran with")
    num_models: int = Field(description="trainings that answer together; 1: no ensemble")
    fingerprints: dict[str, str] = Field(description="SHA-256 digests of weights, encoder and configuration")
    ages_years: tuple[float, float] | None = Field(
        description="of models that tell brains at other ages: youngest and oldest age in training; null of all others"
    )

    @classmethod
    def of(cls, name: str, card: ModelCard) -> ModelAnswer:
        """What is told of a loaded model."""
        return cls(
            name=name,
            kind=card.model_name,
            version=card.version,
            classes=list(card.classes),
            target=card.target,
            targets=[TargetDescription.of(one) for one in card.targets],
            modality=card.modality,
            profile=card.profile,
            profile_sha256=card.profile_sha256,
            num_models=len(card.members) or 1,
            fingerprints=card.fingerprints,
            ages_years=None if card.ageing is None else card.ageing.age_range_years,
        )


class ModelsAnswer(BaseModel):
    """All models that this service has loaded."""

    models: list[ModelAnswer]


class SliceAnswer(BaseModel):
    """How much one slice counted."""

    slice_index: int = Field(description="index along the slice axis of the scan in RAS+ order")
    position_mm: float = Field(description="world coordinate of the slice's centre along that axis")
    weight: float = Field(description="attention weight; the weights of a scan sum to 1")


class IntervalValue(BaseModel):
    """Where the truth lies, by the errors that the model made in people it was not trained on."""

    low: float = Field(description="lower end, in the target's unit")
    high: float = Field(description="upper end")
    level: float = Field(
        description="how often such intervals hold the truth of a new person from the same population (split conformal)"
    )
    num_people: int = Field(description="validation people on whose errors it rests, one of each family")


class TargetValue(BaseModel):
    """What the model says of one target."""

    name: str
    label: str | None = Field(description="the most probable class; null for a number")
    probabilities: dict[str, float] = Field(description="class to probability; empty for a number")
    value: float | None = Field(description="of a number, in its unit; null for classes")
    unit: str
    quantiles: dict[str, float] = Field(description="of a number: level to value; empty where the model tells none")
    interval: IntervalValue | None = Field(description="of a number; null for classes, and where there is none")
    no_interval: str | None = Field(description="of a number without an interval: why there is none")
    spread: float | None = Field(
        description="standard deviation over the windows of a run, of the value or of the likeliest class's "
        "probability; null of one window. How much the answer changes within the run, not how far it is from the truth"
    )
    num_windows: int = Field(description="of which value and probabilities are the mean")
    num_models: int = Field(description="trainings (seeds, folds) of which the answer is the mean; 1: no ensemble")
    model_spread: float | None = Field(
        description="standard deviation over these, of the value or of the likeliest class's probability; null of one"
    )

    @classmethod
    def of(cls, answer: TargetAnswer) -> TargetValue:
        """What a model said of it."""
        return cls(**answer.to_json())


class MotionValue(BaseModel):
    """How much the head moved during a run."""

    fd_mean_mm: float | None = Field(description="mean framewise displacement; null where the head was not found")
    fd_max_mm: float | None = Field(description="the largest")
    dvars: float | None = Field(description="mean change from frame to frame in the brain; 10 is 1 % of its median")
    num_lost: int = Field(description="steps into or out of a frame in which the head was not found")


class GapValue(BaseModel):
    """How much older the brain looks than the person is, in years: raw first, then corrected by a line of controls."""

    age_years: float = Field(description="the true age, as the form told it")
    raw_years: float = Field(description="predicted less true age")
    interval: IntervalValue | None = Field(description="of the raw gap; null where the prediction has none")
    beheshti_years: float | None = Field(description="raw gap less what controls of this age have; null without a line")
    cole_years: float | None = Field(
        description="the same over the line's slope; null, besides, where that is too flat"
    )
    sds_of_controls: float | None = Field(description="corrected gap in standard deviations of controls; null without")
    no_correction: str | None = Field(description="why there is no corrected gap; null where there is one")
    fitted_on: str | None = Field(
        description="the controls of the line: validation (weights were selected on them), held_out (test people of "
        "all folds), table"
    )
    controls: list[str] = Field(description="their groups; empty: everybody")
    num_controls: int | None = Field(description="people")
    control_ages_years: tuple[float, float] | None = Field(description="youngest and oldest of them")

    @classmethod
    def of(cls, gap: GapAnswer) -> GapValue:
        """The gap of an answer."""
        return cls(**dataclasses.asdict(gap))


class MapAnswer(BaseModel):
    """What an answer rests on, place by place."""

    facts: dict[str, Any] = Field(description="method, target, and how exact it is, as predict --explain tells it")
    png_base64: str = Field(description="a PNG picture of the map over the anatomy, without a face")
    nifti_base64: str | None = Field(
        description="the map as .nii.gz, float32, on the grid of the scan as its profile has prepared it (profile "
        "native: the uploaded file's own); null where it is larger than this service sends"
    )
    nifti_size_bytes: int = Field(description="of the .nii.gz file, before base64")
    no_nifti: str | None = Field(description="why there is no NIfTI; null where there is one")

    @classmethod
    def of(cls, packed: PackedMap) -> MapAnswer:
        """A packed map in letters."""
        return cls(
            facts=packed.facts,
            png_base64=base64.b64encode(packed.png).decode(),
            nifti_base64=None if packed.nifti is None else base64.b64encode(packed.nifti).decode(),
            nifti_size_bytes=packed.nifti_size_bytes,
            no_nifti=packed.no_nifti,
        )


class VolumeFile(BaseModel):
    """A volume on the uploaded file's own grid."""

    nifti_base64: str | None = Field(description="as .nii.gz, float32; null where it is more than this service sends")
    nifti_size_bytes: int = Field(description="of the .nii.gz file, before base64")
    no_nifti: str | None = Field(description="why there is no NIfTI; null where there is one")

    @classmethod
    def of(cls, packed: PackedFile | None) -> VolumeFile | None:
        """A packed volume in letters."""
        if packed is None:
            return None
        nifti = None if packed.nifti is None else base64.b64encode(packed.nifti).decode()
        return cls(nifti_base64=nifti, nifti_size_bytes=packed.size_bytes, no_nifti=packed.no_nifti)


class AgeAnswer(BaseModel):
    """The brain at one age."""

    age_years: float
    facts: dict[str, Any] = Field(description="what was measured of it, as generate.json tells it")
    picture_png_base64: str = Field(
        description="axial, coronal and sagittal plane, below them the change; one place and one scale for all ages"
    )
    volume: VolumeFile | None = Field(description="the brain, in the scan's units; null where files=none")
    difference: VolumeFile | None = Field(description="minus the reconstruction; null unless files=all")
    spread: VolumeFile | None = Field(description="standard deviation over samples; null unless files=all")

    @classmethod
    def of(cls, packed: PackedAge) -> AgeAnswer:
        """A packed age in letters."""
        facts = dict(packed.facts)
        return cls(
            age_years=facts.pop("age_years"),
            facts=facts,
            picture_png_base64=base64.b64encode(packed.png).decode(),
            volume=VolumeFile.of(packed.files.get("volume")),
            difference=VolumeFile.of(packed.files.get("difference")),
            spread=VolumeFile.of(packed.files.get("spread")),
        )


class AgeingAnswer(BaseModel):
    """The same brain at other ages. No forecast for this person: what a model of group data makes of one scan."""

    facts: dict[str, Any] = Field(description="what was asked, and how well the scan itself is reconstructed")
    ages: list[AgeAnswer] = Field(description="in the order asked")
    strip_png_base64: str = Field(description="scan, reconstruction and all ages in one picture, without a face")
    reconstruction: VolumeFile | None = Field(description="of the scan itself; null unless files=all")

    @classmethod
    def of(cls, packed: PackedAges) -> AgeingAnswer:
        """A packed sweep in letters."""
        return cls(
            facts=dict(packed.facts),
            ages=[AgeAnswer.of(one) for one in packed.ages],
            strip_png_base64=base64.b64encode(packed.strip).decode(),
            reconstruction=VolumeFile.of(packed.reconstruction),
        )


class PredictionAnswer(BaseModel):
    """The answer for one scan."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                examples.PREDICTION,
                examples.PREDICTION_OF_RUN,
                examples.PREDICTION_OF_AGE,
                examples.PREDICTION_OF_AGEING,
            ]
        }
    )

    label: str | None = Field(description="the most probable class of the main target; null where it is a number")
    probabilities: dict[str, float] = Field(description="class of the main target to probability; they sum to 1")
    targets: list[TargetValue] = Field(description="what is said of each target, the main one first")
    warnings: list[str] = Field(description="why the answer may deserve less trust, in plain words")
    profile: str = Field(description="the preprocessing profile that the scan went through")
    profile_sha256: str = Field(description="hash of that profile")
    model: ModelAnswer = Field(description="who answered")
    attention_axis: str | None = Field(description="the plane of the slices: axial, coronal or sagittal; null without")
    attention: list[SliceAnswer] = Field(description="how much each slice that the model looked at counted")
    motion: MotionValue | None = Field(description="of a run; null of a volume. What is beyond training is a warning")
    gap: GapValue | None = Field(description="of a predicted age, where the form says age_years; null otherwise")
    map: MapAnswer | None = Field(description="what the answer rests on; null unless the form says explain=true")
    ageing: AgeingAnswer | None = Field(description="of models that tell brains at other ages; null of all others")

    @classmethod
    def of(cls, name: str, reply: PackedReply) -> PredictionAnswer:
        """The answer of the model that is served under `name`."""
        prediction = reply.prediction
        return cls(
            model=ModelAnswer.of(name, prediction.model),
            label=prediction.label,
            probabilities=prediction.probabilities,
            targets=[TargetValue.of(answer) for answer in prediction.targets],
            profile=prediction.profile,
            profile_sha256=prediction.profile_sha256,
            attention_axis=prediction.attention_axis,
            attention=[
                SliceAnswer(slice_index=row.slice_index, position_mm=row.position_mm, weight=row.weight)
                for row in prediction.attention
            ],
            motion=None if prediction.motion is None else MotionValue(**prediction.motion.to_json()),
            warnings=list(prediction.warnings),
            gap=None if prediction.gap is None else GapValue.of(prediction.gap),
            map=None if reply.map is None else MapAnswer.of(reply.map),
            ageing=None if reply.ageing is None else AgeingAnswer.of(reply.ageing),
        )


class HealthAnswer(BaseModel):
    """The service takes requests."""

    status: str = "ok"
    models: list[str] = Field(default=[], examples=[["dinoatten3d"]])


class ErrorAnswer(BaseModel):
    """Why there is no answer: what was given, what was expected, the likely fix."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "ScanError",
                    "fault": "upload.nii.gz is no gzip file",
                    "given": "it begins with <html",
                    "expected": "a NIfTI volume",
                    "fix": "download the file again: this is a web page",
                }
            ]
        }
    )

    error: str = Field(description="the kind of fault, for programs")
    fault: str
    given: str | None = None
    expected: str | None = None
    fix: str | None = None
