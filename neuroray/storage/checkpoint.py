"""Weights, the configuration that builds the model again, and where they came from: complete in a folder, or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from neuroray.storage.faults import DamagedObjectError, MissingObjectError, StoreError
from neuroray.storage.locations import Location

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
_OWN_KEYS: Final = ("training", "weights")


def save_weights(
    folder: Location | str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Writes `model.safetensors`, then `config.json` with the digest of the former.

    Where there is no `config.json` there is no checkpoint: it goes first when one is replaced, and comes last.

    Args:
        folder: Where to; made when it is not there.
        state_dict: Whole tensors (not the shards of a distributed model), on any device.
        config: What builds the model and reads its answers, ready for JSON; `training` and `weights` are added to it.
        provenance: What the weights came from (data, seed, versions, commit); stands under `training`.

    Raises:
        StoreError: tensors or values that cannot be written, or a failed write.
    """
    location = folder if isinstance(folder, Location) else Location(folder)
    taken = [key for key in _OWN_KEYS if key in config]
    if taken:
        raise StoreError("a configuration holds a name that the checkpoint needs", given=", ".join(taken))
    tensors = {name: _whole_tensor(name, tensor) for name, tensor in state_dict.items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    described = {"file": WEIGHTS, "sha256": _sha256(weights), "size_bytes": len(weights), "num_tensors": len(tensors)}
    document = {**config, "training": dict(provenance), "weights": described}
    try:
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"a configuration cannot be written as JSON in {location.uri}", given=error) from error
    location.delete(CONFIG)
    location.write_bytes(WEIGHTS, weights)
    location.write_bytes(CONFIG, text.encode())


def load_weights(
    folder: Location | str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Gives state_dict (on the CPU), config and provenance as they were saved.

    Raises:
        MissingObjectError: there is no checkpoint.
        StoreError: it is damaged, or its parts do not belong together.
    """
    location = folder if isinstance(folder, Location) else Location(folder)
    document = _read_document(location)
    described, provenance = document.pop("weights"), document.pop("training")
    weights = location.read_bytes(WEIGHTS)
    if _sha256(weights) != described["sha256"]:
        raise DamagedObjectError(
            f"{WEIGHTS} in {location.uri} is not the file that {CONFIG} was written for",
            given=f"{len(weights)} bytes, SHA-256 {_sha256(weights)[:16]}...",
            expected=f"{described['size_bytes']} bytes, {described['sha256'][:16]}...",
            fix="copy the folder again, or export it again",
        )
    try:
        return safetensors.torch.load(weights), document, provenance
    except SafetensorError as error:
        raise StoreError(f"{WEIGHTS} in {location.uri} cannot be read", given=error) from error


def _read_document(location: Location) -> dict[str, Any]:
    try:
        document = json.loads(location.read_bytes(CONFIG))
        described = document["weights"]
        complete = {"sha256", "size_bytes"} <= set(described) and isinstance(document["training"], dict)
    except MissingObjectError as error:
        fix = "give the folder that holds config.json (of a run: RUN/model)"
        raise MissingObjectError(f"there is no checkpoint in {location.uri}", expected=CONFIG, fix=fix) from error
    except (ValueError, KeyError, TypeError) as error:
        given = f"{type(error).__name__}: {error}"
        raise StoreError(f"{CONFIG} in {location.uri} is not a checkpoint's", given=given) from error
    if not complete:
        raise StoreError(f"{CONFIG} in {location.uri} does not describe its weights", given=sorted(described))
    return document


def _whole_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of its own, for safetensors takes no two tensors that share memory."""
    if not isinstance(tensor, torch.Tensor) or hasattr(tensor, "full_tensor"):
        fix = "gather the model first (torch.distributed.checkpoint.state_dict, full_state_dict=True)"
        raise StoreError(f"{name} is not a whole tensor", given=type(tensor).__name__, expected="Tensor", fix=fix)
    return tensor.detach().to("cpu", copy=True).contiguous()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
