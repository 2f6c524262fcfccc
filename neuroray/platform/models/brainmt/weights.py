"""The authors' checkpoints under our names, and ours under theirs; nothing of theirs is needed to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neuroray.platform.models.brainmt.config import BrainMTConfig, token_grid
from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from neuroray.platform.models.brainmt.model import BrainMT

_WRAPPER = "module."
"""What DistributedDataParallel puts before every name."""

_FIXED = {
    "embedding.cls": "cls_token",
    "embedding.space": "pos_embed",
    "embedding.time": "temporal_pos_embedding",
    "frame_encoder.stem1.weight": "patch_embed.conv_down.0.weight",
    "frame_encoder.stem2.weight": "patch_embed.conv_down.2.weight",
    "frame_encoder.down1.weight": "downsample0.reduction.0.weight",
    "frame_encoder.down2.weight": "downsample1.reduction.0.weight",
    "mamba_norm.weight": "norm_f.weight",
}
_PREFIXES = {
    "frame_encoder.unit1.": "conv_block0.",
    "frame_encoder.unit2.": "conv_block1.",
    "shared.norm.": "norm.",
    "shared.mlp.up.": "mlp.fc1.",
    "shared.mlp.down.": "mlp.fc2.",
    "head.": "head.",
}
_IN_ATTENTION = {"attention.qkv": "qkv", "attention.project": "proj"}
_IN_DIRECTION = {
    "conv": "conv1d{}",
    "select": "x_proj{}",
    "delta": "dt_proj{}",
    "skip": "D{}",
}
_LOG_DECAY = {"ahead": "A_log", "back": "A_b_log"}


def from_released(state_dict: Mapping[str, Any], *, grid_shape: tuple[int, int, int] = (91, 109, 91)) -> BrainMT:
    """A model in eval mode from the authors' `model_state_dict` (or the whole checkpoint that holds it).

    Depths, directions, widths and frames are found from the tensors. The number of heads leaves no trace in them: the
    released 2 are taken.

    Args:
        state_dict: Their names to tensors.
        grid_shape: Voxels along x, y, z that it was trained on, of which the tensors tell only the number of tokens.

    Raises:
        ModelError: tensors that are missing, foreign, or of a shape that does not fit the others.
    """
    held = state_dict.get("model_state_dict", state_dict)
    tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in held.items()}
    model = _describe(tensors, grid_shape).build()
    own = model.state_dict()
    released = {_released_name(name): name for name in own}
    missing, foreign = sorted(set(released) - set(tensors)), sorted(set(tensors) - set(released))
    if missing or foreign:
        given = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, what in ((missing, "missing"), (foreign, "unknown"))
            if names
        )
        raise ModelError("these are not the weights of a BrainMT", given=given, expected="the released names")
    for theirs, ours in released.items():
        if tensors[theirs].shape != own[ours].shape:
            given, expected = f"{theirs} {tuple(tensors[theirs].shape)}", f"{tuple(own[ours].shape)}"
            raise ModelError("a tensor has another shape than the others tell", given=given, expected=expected)
    model.load_state_dict({ours: tensors[theirs] for theirs, ours in released.items()})
    return model.eval()


def to_released(model: BrainMT) -> dict[str, Tensor]:
    """The model's weights by the authors' names.

    Raises:
        ModelError: a model with parts that the release does not have.
    """
    return {_released_name(name): tensor for name, tensor in model.state_dict().items()}


def _describe(tensors: Mapping[str, Tensor], grid_shape: tuple[int, int, int]) -> BrainMTConfig:
    needed = ("pos_embed", "temporal_pos_embedding", "patch_embed.conv_down.2.weight", "head.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ModelError("these are not the weights of a BrainMT", given=f"no {', '.join(missing)}")
    num_tokens = tensors["pos_embed"].shape[1] - 1
    if num_tokens != math.prod(token_grid(grid_shape)):
        raise ModelError(
            "the spatial position table is of another grid",
            given=f"{num_tokens} tokens per frame",
            expected=f"{math.prod(token_grid(grid_shape))} for {grid_shape} voxels",
            fix="give the grid_shape (x, y, z) that the model was trained on",
        )
    layer = "layers.0.mixer."
    inner, states = tuple(tensors[f"{layer}A_log"].shape) if f"{layer}A_log" in tensors else (2, 16)
    channels = tensors["pos_embed"].shape[2]
    taps = tensors[f"{layer}conv1d.weight"].shape[-1] if f"{layer}conv1d.weight" in tensors else 4
    hidden = tensors["mlp.fc1.weight"].shape[0] if "mlp.fc1.weight" in tensors else 2 * channels
    return BrainMTConfig(
        grid_shape=grid_shape,
        num_frames=tensors["temporal_pos_embedding"].shape[1],
        num_outputs=tensors["head.weight"].shape[0],
        width=tensors["patch_embed.conv_down.2.weight"].shape[0],
        mamba_depth=_count(tensors, "layers."),
        attention_depth=_count(tensors, "blocks."),
        bidirectional=f"{layer}A_b_log" in tensors,
        state_size=states,
        conv_taps=taps,
        expansion=max(1, inner // channels),
        mlp_ratio=hidden / channels,
    )


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(prefix)})


def _released_name(name: str) -> str:
    if name in _FIXED:
        return _FIXED[name]
    parts = name.split(".")
    if parts[0] == "mamba_layers":
        return f"layers.{parts[1]}.{_name_in_mamba('.'.join(parts[2:]))}"
    if parts[0] == "attention_layers" and ".".join(parts[2:4]) in _IN_ATTENTION:
        return f"blocks.{parts[1]}.{_IN_ATTENTION['.'.join(parts[2:4])]}.{parts[4]}"
    for ours, theirs in _PREFIXES.items():
        if name.startswith(ours) and len(parts) <= ours.count(".") + 2:
            return theirs + name.removeprefix(ours)
    raise ModelError(
        "the released model has no such part", given=name, expected="the released design: conv, shared MLP, linear head"
    )


def _name_in_mamba(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "norm":
        return name
    part, rest = parts[1], parts[2:]
    if part in ("project_in", "project_out"):
        return ".".join(["mixer", {"project_in": "in_proj", "project_out": "out_proj"}[part], *rest])
    if rest[0] == "log_decay":
        return f"mixer.{_LOG_DECAY[part]}"
    released = _IN_DIRECTION[rest[0]].format("" if part == "ahead" else "_b")
    return ".".join(["mixer", released, *rest[1:]])
