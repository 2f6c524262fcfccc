"""Where a slice encoder's weights come from: a timm name, a file with its hash, or a seed; offline never waits."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.backbones import Backbone, Readout, create_backbone, describe_backbone

Positions = Literal["timm", "hub"]
"""How a position table is resampled to another picture size; see `SliceEncoderConfig`."""

PROBE_TIMEOUT_S = 8.0
"""How long the hub may take to answer at all before it counts as out of reach."""

_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


def hash_tensors(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes: the same weights hash the same wherever they came from."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def check_file(path: Path, expected_sha256: str) -> None:
    """Raises ModelError where the file is missing, or holds other bytes than the hash says."""
    if not path.is_file():
        raise ModelError("the encoder's weight file is not there", given=path, expected="a .safetensors or .pth file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected_sha256.lower():
        raise ModelError(
            f"{path.name} is not the file that was asked for",
            given=f"sha256 {found}",
            expected=f"sha256 {expected_sha256.lower()}",
            fix="fetch the file again, or give the hash of the file that you mean to use",
        )


def find_hub_file(backbone: str) -> Path:
    """The weights that a timm name stands for: from the local cache, else fetched from the Hugging Face hub.

    With `HF_HUB_OFFLINE=1` no network is touched; without it, a hub that does not answer in a few seconds is given up.

    Raises:
        ModelError: the file is neither cached nor to be had; says which one to fetch and how to hand it over.
    """
    import huggingface_hub

    known = describe_backbone(backbone)
    if not known.hf_hub_id:
        raise ModelError(
            f"timm names no weights for {backbone}", fix='give a tag that has some, or use weights "file" or "random"'
        )
    repository, _, revision = known.hf_hub_id.partition("@")
    names = (known.hf_hub_filename,) if known.hf_hub_filename else _FILE_NAMES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if _is_offline():
        raise _explain_missing(backbone, repository, names[0], "offline mode is set (HF_HUB_OFFLINE)")
    return _download(backbone, repository, names, revision or None)


def load_backbone(name: str, readout: Readout, image_size: int, path: Path, *, positions: Positions) -> Backbone:
    """The backbone with the weights of a file, every tensor accounted for.

    Official DINOv2 `.pth` files are taken too. A position table for another picture size is resampled as timm does it
    (`positions="timm"`), or as the official DINOv2 code does (`"hub"`).

    Raises:
        ModelError: the file's tensors are not this backbone's.
    """
    native_classes = describe_backbone(name).num_classes
    attempts: list[dict[str, Any]] = [{"num_classes": 0, "pretrained_cfg_overlay": {"num_classes": 0}}]
    if native_classes:
        # timm stops checking names as soon as the classifier differs from the file's, so it is loaded and then dropped.
        attempts.insert(0, {"num_classes": native_classes, "pretrained_cfg_overlay": {}})
    faults = []
    for options in attempts:
        options["pretrained_cfg_overlay"] |= {"file": str(path), "label_offset": 0}
        try:
            backbone = create_backbone(name, readout, image_size, pretrained=True, **options)
        except (RuntimeError, KeyError, ValueError, OSError) as fault:
            if isinstance(fault, ModelError):
                raise
            faults.append(" ".join(str(fault).split())[:300])
            continue
        backbone.reset_classifier(0)
        if positions == "hub":
            _use_hub_positions(backbone, path)
        return backbone
    raise ModelError(
        f"{path.name} does not hold the weights of {name}", given=faults[0], fix="check backbone, readout and file"
    )


def resample_positions(table: Tensor, grid_size: int) -> Tensor:
    """A position table `1 tokens channel` (class token first) for a square grid, as DINOv2's own code resamples it.

    Bicubic without antialias, by a scale of (new + 0.1) / old: the official models without registers do so; timm goes
    by exact size and with antialias.
    """
    prefix, patches = table[:, :1], table[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == grid_size:
        return table
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    scale = (grid_size + 0.1) / old
    resampled = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([prefix, resampled.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def _use_hub_positions(backbone: Backbone, path: Path) -> None:
    from timm.models import load_state_dict

    if getattr(backbone, "num_reg_tokens", 0):
        return  # The official models with registers resample as timm does.
    table = load_state_dict(str(path)).get("pos_embed")
    position = getattr(backbone, "pos_embed", None)
    if table is None or position is None or getattr(backbone, "no_embed_class", False):
        raise ModelError('positions "hub" is for DINOv2 backbones, which have a position table', given=path.name)
    grid_size = round((position.shape[1] - 1) ** 0.5)
    with torch.no_grad():
        position.copy_(resample_positions(table, grid_size))


def _is_offline() -> bool:
    from huggingface_hub import constants

    # The library reads the variable once, when it is imported; it may have been set since.
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _download(backbone: str, repository: str, names: tuple[str, ...], revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        fault = _probe(huggingface_hub.hf_hub_url(repository, name, revision=revision))
        if isinstance(fault, EntryNotFoundError):
            continue
        if fault is not None:
            raise _explain_missing(backbone, repository, name, f"the hub is out of reach ({fault})") from fault
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    raise _explain_missing(backbone, repository, names[0], "the hub has no such file")


def _probe(url: str) -> Exception | None:
    """Asks once whether the file is there; in a thread, since a name server that never answers has no time limit."""
    import huggingface_hub

    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_TIMEOUT_S)
        except Exception as fault:
            answer.append(fault)
        else:
            answer.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return answer[0] if answer else TimeoutError(f"no answer within {PROBE_TIMEOUT_S:g} s")


def _explain_missing(backbone: str, repository: str, name: str, reason: str) -> ModelError:
    return ModelError(
        f"the weights of {backbone} are not on this machine, and {reason}",
        expected=f"{name} of {repository} in the Hugging Face cache",
        fix=f"on a machine with network run `hf download {repository} {name}`, copy the file here, and give it with "
        'weights "file", weights_file and weights_sha256; or use weights "random" to try things out',
    )
