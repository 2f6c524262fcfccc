"""BIDS names taken apart, and the JSON files that apply to a scan by the inheritance principle."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BIDS_NAME = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9]+)*_[A-Za-z0-9]+")
_SHARED_NAME = re.compile(r"([A-Za-z0-9]+-[A-Za-z0-9]+_)*[A-Za-z0-9]+")
_MAX_DEPTH = 4  # data set, person, visit, kind of data
_MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class BidsName:
    """`sub-001_task-rest_bold`: its entities in order, and its suffix."""

    entities: dict[str, str]
    suffix: str


def parse_bids_name(stem: str) -> BidsName | None:
    """The parts of a scan's name without its file ending; None where it is not a BIDS name."""
    return _split(stem) if _BIDS_NAME.fullmatch(stem) else None


class SidecarIndex:
    """Sidecars by folder, each file read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, list[tuple[BidsName, Path]]] = {}
        self._contents: dict[Path, dict[str, Any] | None] = {}

    def find(self, path: Path, name: BidsName) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What applies to a scan, and which files could not be read.

        A JSON file applies when it lies in the scan's folder or above (up to the data set's), has the same suffix, and
        no entity that the scan has not (BIDS 1.10, common principles, inheritance). The nearer one overrides.
        """
        merged: dict[str, Any] = {}
        notices = []
        for folder in reversed(_folders_up(path.parent)):
            for sidecar_name, file in self._list(folder):
                applies = sidecar_name.suffix == name.suffix and sidecar_name.entities.items() <= name.entities.items()
                if not applies:
                    continue
                content = self._read(file)
                if content is None:
                    notices.append(f"{file.name} is not a JSON object and was left out")
                merged |= content or {}
        return merged, tuple(notices)

    def _list(self, folder: Path) -> list[tuple[BidsName, Path]]:
        if folder not in self._folders:
            files = [file for file in sorted(folder.glob("*.json")) if _SHARED_NAME.fullmatch(file.stem)]
            named = [(_split(file.stem), file) for file in files]
            self._folders[folder] = sorted(named, key=lambda pair: len(pair[0].entities))
        return self._folders[folder]

    def _read(self, file: Path) -> dict[str, Any] | None:
        if file not in self._contents:
            self._contents[file] = _read_object(file)
        return self._contents[file]


def _folders_up(folder: Path) -> list[Path]:
    """The scan's folder and those above it, up to that of the data set; only itself where none says it is one."""
    above = [folder, *folder.parents][:_MAX_DEPTH]
    for depth, candidate in enumerate(above):
        if (candidate / "dataset_description.json").exists():
            return above[: depth + 1]
    named = [depth for depth, candidate in enumerate(above) if candidate.name.startswith("sub-")]
    return above[: named[-1] + 2] if named else above[:1]


def _split(stem: str) -> BidsName:
    *pairs, suffix = stem.split("_")
    return BidsName(entities=dict(pair.split("-", 1) for pair in pairs), suffix=suffix)


def _read_object(file: Path) -> dict[str, Any] | None:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            return None
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # ValueError covers broken JSON and broken UTF-8
        return None
    return content if isinstance(content, dict) else None
