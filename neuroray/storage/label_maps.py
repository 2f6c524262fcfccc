"""Label maps: files that say which structure each voxel of a scan belongs to, found by the scan's name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int32

from neuroray.errors import NeurorayError
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles.transform import NativeGrid
from neuroray.storage.scan_names import name_stem
from neuroray.storage.table_file import TextTable, read_text_table
from neuroray.storage.volume_files import find_suffix

_PARCELS = [*range(1001, 1036), *range(2001, 2036)]
STRUCTURES: Final[Mapping[str, frozenset[int]]] = {
    "hippocampus": frozenset({17, 53}),
    "amygdala": frozenset({18, 54}),
    "thalamus": frozenset({9, 10, 48, 49}),
    "caudate": frozenset({11, 50}),
    "putamen": frozenset({12, 51}),
    "lateral ventricles": frozenset({4, 43}),
    "white matter": frozenset({2, 41}),
    "cortex": frozenset({3, 42, *_PARCELS}),
}
"""Both sides together, by the numbers of FreeSurfer and SynthSeg (aseg, aparc+aseg), which hold where no table does."""
_SIDES = frozenset({"left", "right", "l", "r", "lh", "rh", "cerebral"})
_NOT_THE_LATERAL = frozenset({"inf", "inferior", "third", "fourth", "3rd", "4th"})
_CEREBELLAR = frozenset({"cerebellum", "cerebellar"})
# BIDS entities by which a derivative differs from what it was made of, and spaces that are the scan's own.
_DERIVED = frozenset({"desc", "space", "res", "den", "label", "seg", "atlas", "model", "method"})
_OWN_SPACES = frozenset({"t1w", "orig", "native", "scanner", "individual"})
# Atlases of the whole brain have some 200; an image of grey values has thousands.
_MOST_LABELS = 512
_NEAR_MM = 0.01


class LabelMapError(NeurorayError, ValueError):
    """A label map that is missing, is none, or does not lie on its scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMap:
    """Structures of one scan, on its own grid.

    Attributes:
        labels: A number for each voxel, along x y z (RAS+).
        affine: Voxel indices to world in mm.
        structures: Numbers that stand in the map, of the structures known here.
    """

    labels: Int32[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    structures: Mapping[str, frozenset[int]]

    def mask(self, structure: str) -> Bool[np.ndarray, "x y z"]:
        """Its voxels."""
        return np.isin(self.labels, list(self.structures[structure]))

    def volume_ml(self, structure: str) -> float:
        """Its voxels by what one of them holds."""
        return float(self.mask(structure).sum()) * abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000


def find_label_maps(folder: str | Path, scan_ids: Collection[str]) -> dict[str, Path]:
    """The label map of each scan that has one in a folder, or in folders within it.

    A file is that of a scan if its name is the scan's id, alone or with more words behind it (`ID.nii.gz`,
    `ID_synthseg.mgz`), or if it is a `_dseg` with the scan's BIDS entities, in the scan's own space
    (`sub-01_ses-01_desc-aseg_dseg.nii.gz` of `sub-01_ses-01_T1w`). A `_dseg` goes before other names.

    Raises:
        LabelMapError: no such folder, or several files of one scan.
    """
    root = Path(folder)
    if not root.is_dir():
        raise LabelMapError("there is no folder of label maps", given=folder, expected="a folder of NIfTI files")
    of_scan: dict[str, list[Path]] = {}
    described = {scan_id: _describe_owner(scan_id) for scan_id in sorted(scan_ids)}
    owners = {entities: scan_id for scan_id, entities in described.items() if "sub" in dict(entities)}
    by_length = sorted(scan_ids, key=len, reverse=True)
    for path in sorted(root.rglob("*")):
        if find_suffix(path.name) is None:
            continue
        stem = name_stem(path.name)
        owner = next((one for one in by_length if stem == one or stem.startswith(f"{one}_")), None)
        owner = owner or (owners.get(_describe_owner(stem)) if _is_own_dseg(stem) else None)
        if owner is not None:
            of_scan.setdefault(owner, []).append(path)
    return {scan_id: _choose(scan_id, paths, root) for scan_id, paths in of_scan.items()}


def read_label_map(path: Path, grid: NativeGrid, *, root: Path | None = None) -> LabelMap:
    """A label map, with the structures in it.

    What its numbers mean is told by a BIDS table (`index` and `name`): the `_dseg.tsv` of the same name, or the
    nearest above it, up to `root`, without other entities. Without a table they are FreeSurfer's and SynthSeg's.

    Args:
        path: The file.
        grid: That of the scan's own file, on which the map must lie.
        root: The folder of all maps; the file's own when None.

    Raises:
        LabelMapError: the file is no map of labels, lies on another grid, or names no structure that is known here.
        ScanError: it cannot be read.
        TableError: a table of names that cannot be read.
    """
    scan = read_scan(path)
    values = scan.voxels
    if values.ndim != 3:
        given = f"{values.shape[0]} volumes"
        raise LabelMapError(f"{path.name} is no label map", given=given, expected="one volume of whole numbers")
    _check_grid(path, scan.affine, values.shape, grid)
    labels = np.rint(values).astype(np.int32)
    if not np.allclose(values, labels, atol=1e-3):
        raise LabelMapError(
            f"{path.name} is no label map", given="broken numbers", expected="whole numbers, one a label"
        )
    found = np.unique(labels)
    if len(found) > _MOST_LABELS:
        given = f"{len(found)} different numbers"
        raise LabelMapError(f"{path.name} is no label map", given=given, expected=f"{_MOST_LABELS} labels at most")
    known, source = _read_names(path, root or path.parent)
    present = {name: numbers & set(found.tolist()) for name, numbers in known.items()}
    structures = {name: frozenset(numbers) for name, numbers in present.items() if numbers}
    if not structures:
        raise LabelMapError(
            f"{path.name} names no structure that is known here",
            given=f"labels {', '.join(map(str, found[found != 0][:12]))}, named by {source}",
            expected=", ".join(STRUCTURES),
            fix="labels of FreeSurfer or SynthSeg (hippocampus 17 and 53, say), or a _dseg.tsv with index and name",
        )
    return LabelMap(labels=labels, affine=scan.affine, structures=structures)


def name_structure(words: str) -> str | None:
    """The structure that a name in a table means, whichever side it says: `Left-Hippocampus`, `ctx-lh-precuneus`."""
    told = set(re.findall(r"[a-z0-9]+", words.lower()))
    if told & _CEREBELLAR:
        return None
    for name in ("hippocampus", "amygdala", "thalamus", "caudate", "putamen"):
        if name in told:
            return name
    if told & {"ventricle", "ventricles"} and "lateral" in told and not told & _NOT_THE_LATERAL:
        return "lateral ventricles"
    if {"white", "matter"} <= told or told - _SIDES == {"wm"}:
        return "white matter"
    return "cortex" if told & {"cortex", "ctx"} else None


def _check_grid(path: Path, affine: np.ndarray, shape: tuple[int, ...], grid: NativeGrid) -> None:
    # At the far corner, where a difference of the affine is largest.
    far = np.array([*grid.shape, 1.0])
    is_off = tuple(shape) != tuple(grid.shape) or np.abs((affine - grid.affine) @ far).max() > _NEAR_MM
    if is_off or np.abs((affine - grid.affine)[:3, 3]).max() > _NEAR_MM:
        own, wanted = (np.round(np.linalg.norm(one[:3, :3], axis=0), 3).tolist() for one in (affine, grid.affine))
        raise LabelMapError(
            f"{path.name} lies on another grid than its scan",
            given=f"{tuple(shape)} voxels of {own} mm from {np.round(affine[:3, 3], 2).tolist()}",
            expected=f"{tuple(grid.shape)} of {wanted} mm from {np.round(grid.affine[:3, 3], 2).tolist()}, the grid of "
            "the file that was ingested",
            fix="lay it onto the scan, labels unmixed: nibabel.processing.resample_from_to(labels, scan, order=0)",
        )


def _read_names(path: Path, root: Path) -> tuple[Mapping[str, frozenset[int]], str]:
    """Numbers by structure, and what says so."""
    table = _find_table(path, root)
    if table is None:
        return STRUCTURES, "FreeSurfer's numbers"
    read = read_text_table(table)
    index, name = _find_column(read, "index"), _find_column(read, "name")
    numbers: dict[str, set[int]] = {}
    for row, cells in read.rows:
        structure = name_structure(cells[name])
        if structure is not None:
            if not re.fullmatch(r"\d+(\.0+)?", cells[index]):
                raise LabelMapError(f"{table.name}: an index is no number", given=f"row {row}: {cells[index]}")
            numbers.setdefault(structure, set()).add(int(float(cells[index])))
    return {name: frozenset(numbers.get(name, ())) for name in STRUCTURES}, table.name


def _find_column(table: TextTable, name: str) -> int:
    columns = [column.lower() for column in table.columns]
    if name not in columns:
        given = ", ".join(table.columns)
        raise LabelMapError(f"{table.name} does not name labels", given=given, expected="columns index and name")
    return columns.index(name)


def _find_table(path: Path, root: Path) -> Path | None:
    """The `_dseg.tsv` that holds for a map: in its folder, else in the nearest above."""
    own = name_stem(path.name)
    beside = path.with_name(f"{own}.tsv")
    if beside.is_file():
        return beside
    if not own.endswith("dseg"):
        return None
    entities = _split(own)
    above = [path.parent, *path.parent.parents]
    for folder in above[: above.index(root) + 1] if root in above else above[:1]:
        tables = [file for file in sorted(folder.glob("*dseg.tsv")) if _split(file.stem) <= entities]
        if tables:
            return max(tables, key=lambda file: len(_split(file.stem)))
    return None


def _split(stem: str) -> frozenset[tuple[str, str]]:
    """BIDS entities of a name."""
    return frozenset((key, value) for key, dash, value in (part.partition("-") for part in stem.split("_")) if dash)


def _describe_owner(stem: str) -> frozenset[tuple[str, str]]:
    """What a scan and its derivatives have in common."""
    return frozenset((key, value) for key, value in _split(stem) if key not in _DERIVED)


def _is_own_dseg(stem: str) -> bool:
    space = dict(_split(stem)).get("space", "orig").lower()
    return stem.endswith("_dseg") and space in _OWN_SPACES


def _choose(scan_id: str, paths: list[Path], root: Path) -> Path:
    preferred = [path for path in paths if name_stem(path.name).endswith("_dseg")] or paths
    if len(preferred) > 1:
        raise LabelMapError(
            f"{scan_id} has several label maps in {root}",
            given=", ".join(str(path.relative_to(root)) for path in preferred[:4]),
            expected="one",
            fix="keep one of them in a folder of their own",
        )
    return preferred[0]
