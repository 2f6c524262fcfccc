"""A model of a frozen encoder and a head: what it sees of a scan can be shared by models that see alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from torch import nn

from neuroray.serve.prediction import ModelCard, Prediction, Said
from neuroray.storage.profiles.profile import NATIVE, Profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan


class EncodedModel(Protocol):
    """What is asked of a loaded model: its module, which has an `encoder`, and what it wrote of itself."""

    @property
    def module(self) -> nn.Module:
        """With an `encoder`, which may be replaced by another model's."""
        ...

    @property
    def card(self) -> Mapping[str, Any]:
        """Of its `model/`."""
        ...


class EncodedPredictor[Model: EncodedModel, Look]:
    """A loaded model; `predict` may be called any number of times, from one thread at a time.

    Attributes:
        card: What is told of the model.
    """

    def __init__(self, card: ModelCard, model: Model, profile: Profile) -> None:
        self.card = card
        self._model = model
        self._profile = profile

    def predict(self, scan: Scan, *, sex: str | None = None, age_years: float | None = None) -> Prediction:
        """Answers for one scan, as it was read; the same scan gives the same answer.

        It goes through the profile of the training scans first.

        Args:
            scan: A volume.
            sex: `M` or `F`, where it is known; see `say`.
            age_years: Of the person, where it is known; see `tell`.

        Raises:
            ScanError: a time series where a volume is expected, or a scan that the profile cannot prepare.
            ModelError: a volume that the model cannot take.
        """
        look = self.look(scan)
        return self.tell(look, self.say(look, sex=sex), sex=sex, age_years=age_years)

    def share_encoder(self, other: Self) -> None:
        """Lets go of its own encoder for the same one of another model."""
        self._model.module.encoder = other._model.module.encoder

    @property
    def sees_as(self) -> str:
        """Models that see alike share their looks, and the encoder's work."""
        return str(self._model.card.get("feature_fingerprint", id(self)))

    def look(self, scan: Scan) -> Look:
        """Prepares and encodes a scan.

        Raises:
            ScanError: as `predict`.
            ModelError: as `predict`.
        """
        raise NotImplementedError

    def say(self, look: Look, *, sex: str | None) -> Said:
        """The answer to what was seen."""
        raise NotImplementedError

    def tell(self, look: Look, said: Said, *, sex: str | None, age_years: float | None) -> Prediction:
        """The answer with all that is to be known of it."""
        raise NotImplementedError

    def _prepare(self, scan: Scan) -> Scan:
        """The scan as the profile of the training scans leaves it."""
        return scan if self._profile.name == NATIVE else prepare(scan, self._profile).scan
