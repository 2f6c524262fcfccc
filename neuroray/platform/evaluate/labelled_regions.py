"""Structures that label maps name: how much they truly changed, and where told brains are measured for the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.visits import Visit, VisitPair, place_grid
from neuroray.storage.label_maps import LabelMap, find_label_maps, read_label_map
from neuroray.storage.profiles.transform import NativeGrid, TemplateTransform, carry_mask
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

TISSUES: Final = {
    "hippocampus": "grey",
    "amygdala": "grey",
    "thalamus": "grey",
    "caudate": "grey",
    "putamen": "grey",
    "lateral ventricles": "fluid",
    "white matter": "white",
    "cortex": "grey",
}
"""What counts of a told brain where a structure is."""
AROUND_MM: Final = 2.0
"""So far beyond the label of the previous scan a structure is looked for."""

Places = Mapping[str, tuple[str, Float32[np.ndarray, "x y z"] | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMeter:
    """Label maps of held-out scans, checked.

    True volumes are those of the labels, in ml of the scan's own file. Generated scans have no labels: of a row the
    share of the structure's tissue is summed within the previous scan's label and 2 mm around it, where no other known
    label of the same tissue lies, and what counts is how that sum differs from the one of what the row tells of the
    previous scan itself. The row's volume is then the labelled one of the previous scan and that change. The real
    follow-up is measured so too, against its own labels: what that does not see, no row can show.

    Attributes:
        store: Of the scans.
        root: The folder of the maps.
        paths: By scan.
        volumes_ml: By scan and structure.
        num_pairs: Pairs asked for.
        num_known: Of them with maps of both scans that share a structure.
    """

    store: ScanStore
    root: Path
    paths: Mapping[str, Path]
    volumes_ml: Mapping[str, Mapping[str, float]]
    num_pairs: int
    num_known: int

    def shared(self, pair: VisitPair) -> list[str]:
        """Structures that both scans of a pair have labels of."""
        return _share(self.volumes_ml, pair)

    def places(self, previous: Visit, target: Visit) -> Places:
        """Where the structures of both visits are looked for, on the grid of the previous scan, as `RegionMaps` has it.

        Raises:
            LabelMapError: the map has changed since it was checked.
            ScanError: it cannot be read any more.
        """
        shared = self.shared(VisitPair(previous=previous.record, target=target.record))
        if not shared:
            return {}
        scan_id, (x, y, z) = previous.record.scan_id, previous.volume.shape
        transform = self.store.read_to_template(scan_id)
        found = read_label_map(self.paths[scan_id], _own_grid(previous.record, transform), root=self.root)
        affine = place_grid(previous.record, (x, y, z))
        places = {}
        for structure in shared:
            around = surround(found, structure)
            carried = carry_mask(around, found.affine, affine, (x, y, z), transform)
            places[name_region(structure)] = (TISSUES[structure], carried.astype(np.float32))
        return places

    def anchor(
        self, pair: VisitPair, measured: Mapping[str, dict[str, float]], changes: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Puts the labels' own volumes in the place of what was summed, and counts rows from them.

        Args:
            pair: Which two scans.
            measured: Volumes of `previous`, `target` and every row, then by region; changed in place.
            changes: Of every row, by region.
        """
        for structure in self.shared(pair):
            region = name_region(structure)
            before, after = (self.volumes_ml[one.scan_id][structure] for one in (pair.previous, pair.target))
            for row, regions in changes.items():
                measured[row][region] = before + regions[region]
            measured["previous"][region], measured["target"][region] = before, after

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "num_pairs": self.num_known,
            "num_pairs_without": self.num_pairs - self.num_known,
            "num_scans": len(self.volumes_ml),
            "structures": dict(Counter(name for some in self.volumes_ml.values() for name in some)),
            "around_mm": AROUND_MM,
            "stated": tell_labels(self),
        }


def open_label_maps(folder: str, store: ScanStore, pairs: Iterable[VisitPair]) -> LabelMeter:
    """Finds the maps of these pairs' scans, reads and checks them all, so that no fault comes late.

    Raises:
        EvaluationError: no pair has maps of both its scans that share a structure.
        LabelMapError: no such folder, several maps of a scan, one on another grid or without a known label.
        ScanError: a map that cannot be read.
        StoreError: a scan that is not in the store.
    """
    asked = list(pairs)
    scans = {record.scan_id: record for pair in asked for record in (pair.previous, pair.target)}
    paths, root = find_label_maps(folder, scans), Path(folder)
    volumes = {}
    for scan_id, path in sorted(paths.items()):
        found = read_label_map(path, _own_grid(scans[scan_id], store.read_to_template(scan_id)), root=root)
        volumes[scan_id] = {name: found.volume_ml(name) for name in found.structures}
    known = sum(bool(_share(volumes, pair)) for pair in asked)
    if not known:
        example = min(scans, default="ID")
        raise EvaluationError(
            f"no two visits of a held-out person have label maps in {folder}",
            given=f"maps of {len(paths)} of {len(scans)} scans",
            expected=f"one file a scan, called {example}.nii.gz or as its BIDS _dseg, that name a structure in common",
            fix="name the files after the scans' ids (neuroray inspect STORE lists them), or leave --label-maps out",
        )
    return LabelMeter(store=store, root=root, paths=paths, volumes_ml=volumes, num_pairs=len(asked), num_known=known)


def surround(found: LabelMap, structure: str) -> Bool[np.ndarray, "x y z"]:
    """A structure and what lies within 2 mm of it, without other structures of the same tissue; on the map's grid."""
    own = found.mask(structure)
    zooms = np.linalg.norm(found.affine[:3, :3], axis=0)
    margins = [math.ceil(AROUND_MM / zoom) + 1 for zoom in zooms]
    box = tuple(
        slice(max(0, int(places.min()) - margin), int(places.max()) + margin + 1)
        for places, margin in zip(np.nonzero(own), margins, strict=True)
    )
    near = np.zeros_like(own)
    # Rounding of a zoom must not cut off what is 2 mm away.
    near[box] = np.asarray(ndimage.distance_transform_edt(~own[box], sampling=zooms)) <= AROUND_MM + 1e-3
    for other in found.structures:
        if other != structure and TISSUES[other] == TISSUES[structure]:
            near &= ~found.mask(other)
    return near


def name_region(structure: str) -> str:
    """What a labelled structure is called among the regions."""
    return f"{structure} (labels)"


def tell_labels(meter: LabelMeter) -> str:
    """How labelled structures were measured, and of how many pairs."""
    without = meter.num_pairs - meter.num_known
    left = f"; {without} pairs without are in none of their figures" if without else ""
    return (
        "Structures called (labels): the true change is that of the volumes of label maps, in ml; "
        f"{meter.num_known} of {meter.num_pairs} pairs have them at both visits{left}. No generated scan has labels: "
        "its predicted change is that of soft grey matter (of ventricles: fluid; of white matter: white) within the "
        f"label of the previous scan and {AROUND_MM:g} mm around it, counted from what the same row tells of the "
        "previous scan itself. Its volume is the labelled one of the previous scan and that change. The first row is "
        "the real follow-up measured in the same way: what it does not see, no other row can show"
    )


def _own_grid(record: ScanRecord, transform: TemplateTransform | None) -> NativeGrid:
    """The grid of the file that was ingested."""
    if transform is not None:
        return transform.native
    x, y, z = record.shape
    return NativeGrid(shape=(x, y, z), affine=np.array(record.affine, dtype=np.float64).reshape(4, 4))


def _share(volumes_ml: Mapping[str, Mapping[str, float]], pair: VisitPair) -> list[str]:
    both: Sequence[Mapping[str, float]] = [volumes_ml.get(one.scan_id, {}) for one in (pair.previous, pair.target)]
    return [name for name in TISSUES if all(name in one for one in both)]
