"""An examination as a file, so that the next run over a cohort examines only what is new."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.quality.examine import VERSION, Course, ScanQuality
from neuroray.platform.quality.tiles import Tile
from neuroray.storage.whole_file import replace_file

_ARRAYS = ("global_signal", "dvars", "displacement_mm", "carpet")
_ENDING = ".npz"


def file_name(manifest_sha256: str, *, with_motion: bool) -> str:
    """Follows from all that is stored of a scan (mask, profile and header included), the code's version, and motion."""
    return f"{manifest_sha256[:32]}-v{VERSION}{'' if with_motion else '-without-motion'}{_ENDING}"


def save_quality(quality: ScanQuality, path: Path) -> None:
    """Writes it whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    facts = {name: value for name, value in _plain(quality).items() if name not in ("tiles", "snr_tile", "course")}
    facts["tiles"] = [_put_tile(tile, f"tile{index}", arrays) for index, tile in enumerate(quality.tiles)]
    facts["snr_tile"] = None if quality.snr_tile is None else _put_tile(quality.snr_tile, "snr", arrays)
    if quality.course is not None:
        found = {name: getattr(quality.course, name) for name in _ARRAYS}
        arrays |= {name: values for name, values in found.items() if values is not None}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    replace_file(path, content.getvalue())


def load_quality(path: Path) -> ScanQuality | None:
    """What was saved; None where there is nothing, or only what a damaged disk has left of it."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts: dict[str, Any] = json.loads(str(arrays["facts"]))
        course = None
        if "carpet" in arrays:
            course = Course(**{name: arrays.get(name) for name in _ARRAYS})  # pyright: ignore[reportArgumentType]
        tiles = tuple(_take_tile(tile, arrays) for tile in facts.pop("tiles"))
        snr_tile = facts.pop("snr_tile")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        return ScanQuality(
            **plain,
            tiles=tiles,
            snr_tile=None if snr_tile is None else _take_tile(snr_tile, arrays),
            course=course,
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _plain(quality: ScanQuality) -> dict[str, Any]:
    return {item.name: getattr(quality, item.name) for item in dataclasses.fields(quality)}


def _put_tile(tile: Tile, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    arrays[f"{name}_tones"], arrays[f"{name}_outline"] = tile.tones, tile.outline
    return {"name": name, "plane": tile.plane, "position_mm": tile.position_mm}


def _take_tile(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Tile:
    tones, outline = (arrays[f"{facts['name']}_{part}"] for part in ("tones", "outline"))
    return Tile(plane=facts["plane"], position_mm=facts["position_mm"], tones=tones, outline=outline)
