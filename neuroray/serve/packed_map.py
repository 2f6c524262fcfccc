"""A map as it goes over the wire: a compressed NIfTI file, a picture, and facts, no larger than the service allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuroray.serve.maps import AnswerMap
from neuroray.serve.packed_ages import PackedAges, pack_ages, write_nifti
from neuroray.serve.prediction import Prediction
from neuroray.serve.question import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMap:
    """A map in bytes.

    Attributes:
        facts: Method, target, and how exact it is.
        nifti: The map as .nii.gz, on the grid of the file that was asked about, as its profile has prepared it; None
            where it is larger than allowed.
        nifti_size_bytes: Of the file, also where it was left out.
        no_nifti: Why it was left out.
        png: The map over the anatomy, without a face.
    """

    facts: dict[str, Any]
    nifti: bytes | None
    nifti_size_bytes: int
    no_nifti: str | None
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedReply:
    """What came of a question, as it leaves the process that computed it.

    Attributes:
        prediction: The answer.
        map: What it rests on, where that was asked for.
        ageing: The brain at other ages, where that was asked for.
    """

    prediction: Prediction
    map: PackedMap | None = None
    ageing: PackedAges | None = None


def pack_reply(reply: Reply, *, max_map_bytes: int) -> PackedReply:
    """The same answer, its maps and volumes packed; see `ServeConfig.max_map_bytes`."""
    packed = None if reply.map is None else pack_map(reply.map, max_bytes=max_map_bytes)
    ages = None if reply.ageing is None else pack_ages(reply.ageing, files=reply.files, max_bytes=max_map_bytes)
    return PackedReply(prediction=reply.prediction, map=packed, ageing=ages)


def pack_map(found: AnswerMap, *, max_bytes: int) -> PackedMap:
    """Writes the map as `neuroray predict --explain` does, and reads the file back.

    Args:
        found: The map.
        max_bytes: The largest file that is passed on.
    """
    written = write_nifti(found.values, found.grid)
    size_bytes = len(written)
    nifti = written if size_bytes <= max_bytes else None
    no_nifti = None
    if nifti is None:
        no_nifti = (
            f"the map takes {size_bytes} bytes, and this service sends {max_bytes} at most: ask for it with "
            "neuroray predict --explain, or ask whoever runs this service to raise its limit"
        )
    return PackedMap(facts=found.facts, nifti=nifti, nifti_size_bytes=size_bytes, no_nifti=no_nifti, png=found.png)
