"""The authors' head weights under our names: matched by shape, since the names they use are not published."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from neuroray.platform.models.dinoatten3d.model import DinoAtten3DHead
from neuroray.platform.models.errors import ModelError


def from_released(state_dict: Mapping[str, Tensor], head: DinoAtten3DHead) -> dict[str, Tensor]:
    """Renames a head's tensors to ours.

    The layers are known (attention Linear, tanh, Linear; embedding Linear, ReLU, Linear, ReLU; classifier Linear), a
    checkpoint or its names are not. At the paper's sizes all ten tensors differ in shape, so shapes alone decide;
    tensors of other shapes (an encoder kept in the same file) are left aside.

    Args:
        state_dict: Whatever the names.
        head: The head to be filled; gives names and shapes.

    Returns:
        What `head.load_state_dict` takes.

    Raises:
        ModelError: a tensor is missing, or more than one could be meant.
    """
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in state_dict.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    renamed = {}
    for name, wanted in head.state_dict().items():
        found = by_shape.get(tuple(wanted.shape), [])
        if len(found) != 1:
            raise ModelError(
                f"{name} cannot be told by its shape {tuple(wanted.shape)}",
                given=f"{len(found)} such tensors: {', '.join(found) or 'none'}",
                expected="exactly one",
                fix="use the sizes of the head that was saved, and leave out tensors that do not belong to it",
            )
        renamed[name] = state_dict[found[0]]
    return renamed
