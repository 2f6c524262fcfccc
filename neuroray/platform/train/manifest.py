"""The manifest of a checkpoint: how far the run had come, and by what its files are known to be whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from neuroray.errors import NeurorayError

_FORMAT = 1


class CheckpointError(NeurorayError, OSError):
    """A checkpoint that is incomplete or damaged, or a folder that the workers do not share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come: all of its state that is not a tensor.

    The learning rate, the order of samples and the random numbers of a step are functions of the step, so they need
    no place here.

    Attributes:
        step: Steps done.
        best_step: The step with the best evaluation so far; None before the first.
        best_scores: What that evaluation gave.
        best_checkpoint: The folder with its weights.
        best_intervals: Of a task that finds them: how far answers were off then, by target.
        evaluations_since_best: Against the recipe's patience.
        stopped_early: The patience has run out: no step follows.
    """

    step: int = 0
    best_step: int | None = None
    best_scores: dict[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    best_intervals: dict[str, Any] = field(default_factory=dict)
    evaluations_since_best: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint folder holds; its presence, whole, makes the checkpoint exist."""

    name: str
    progress: Progress
    identity: dict[str, Any]
    world_size: int
    files: tuple[dict[str, Any], ...]

    def to_bytes(self) -> bytes:
        """JSON with a checksum over itself, so that a torn or altered manifest shows."""
        body = {
            "format": _FORMAT,
            "name": self.name,
            "progress": {name: getattr(self.progress, name) for name in Progress.__slots__},
            "identity": self.identity,
            "world_size": self.world_size,
            "files": list(self.files),
        }
        return json.dumps({**body, "sha256": _digest_json(body)}, indent=2).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads what `to_bytes` made.

        Raises:
            CheckpointError: the bytes are not a whole manifest of this format.
        """
        try:
            body = json.loads(data)
            digest = body.pop("sha256")
            whole = digest == _digest_json(body) and body.pop("format") == _FORMAT
            if whole:
                files = tuple(body.pop("files"))
                return cls(progress=Progress(**body.pop("progress")), files=files, **body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError("the manifest is not whole", given=f"{type(error).__name__}: {error}") from error
        raise CheckpointError("the manifest's checksum or format does not fit")


def _digest_json(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
