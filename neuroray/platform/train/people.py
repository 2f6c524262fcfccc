"""Which scans of a store a recipe trains on, and what is recorded of their voxels."""

from __future__ import annotations

from collections.abc import Sequence

from neuroray.platform.data.labels import read_text
from neuroray.platform.train.recipe import Recipe, RecipeError
from neuroray.storage.store import ScanRecord, ScanStore

SpacingRange = tuple[tuple[float, float, float], tuple[float, float, float]]


def choose_records(store: ScanStore, recipe: Recipe) -> list[ScanRecord]:
    """The scans of the recipe's modality, and of its classes where it names some.

    Raises:
        RecipeError: there are none.
    """
    data = recipe.data
    everything = store.records()
    records = [record for record in everything if record.modality == data.modality]
    if data.classes:
        records = [record for record in records if read_text(record, data.target) in data.classes]
    if not records:
        kinds = sorted({record.modality for record in everything})
        raise RecipeError(
            f"{store.uri} has no scans to train on",
            given=f"{len(everything)} scans of {', '.join(kinds) or 'no kind'}",
            expected=f"{data.modality} with {data.target} {' or '.join(data.classes) or 'known'}",
            fix="check --data.modality, --data.target and --data.classes, or ingest more",
        )
    return records


def spacing_range(records: Sequence[ScanRecord], scan_ids: Sequence[str]) -> SpacingRange:
    """Smallest and largest voxel size along x, y, z among these scans."""
    chosen = set(scan_ids)
    columns = list(zip(*(record.zooms_mm for record in records if record.scan_id in chosen), strict=True))
    x, y, z = ((min(column), max(column)) for column in columns)
    return (x[0], y[0], z[0]), (x[1], y[1], z[1])
