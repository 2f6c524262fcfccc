"""PictureReader: one slice of a volume as a grey picture; the pictures of a volume are made together and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroray.platform.data.collate import Row
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.readers import Label, RowCache, StoreReader

if TYPE_CHECKING:
    from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig
    from neuroray.storage.store import ScanStore


class PictureReader(StoreReader):
    """Reads `picture` (height, width) uint8: item `start` to `start + 1` is picture `start` of the volume.

    Args:
        store_uri: The store of the scans.
        version: Its catalogue version.
        slices: Which pictures.
        labels: Class index of each scan; None: rows carry no label.
        cache_bytes: How many pictures to keep in each process. A shuffled epoch wants each volume as often as it has
            pictures, so a cohort that does not fit in here is cut again and again (32 of 224: 1.6 MB a person).
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        slices: ResampledStackConfig,
        *,
        labels: Mapping[str, Label] | None = None,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        super().__init__(store_uri, version, labels=labels, cache_bytes=0)
        self._slices = slices
        self._picture_bytes = cache_bytes
        self._pictures = RowCache(cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pictures": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pictures = RowCache(self._picture_bytes)

    def size_bytes(self, item: ReadItem) -> int:
        """Of one picture and its label."""
        return self._slices.image_size**2 + sum(label.nbytes for label in self._label(item).values())

    def _open(self) -> ScanStore:
        from neuroray.storage.store import ScanStore

        return ScanStore(self._store_uri, version=self._version)

    def _read(self, item: ReadItem) -> Row:
        if item.start is None or item.stop != item.start + 1:
            raise PlanError("pictures are read one by one", given=item, expected="an item of one slice")
        whole = ReadItem(scan_id=item.scan_id)
        row = self._pictures.get(whole)
        if row is None:
            row = {"pictures": self._cut(item.scan_id)}
            self._pictures.put(whole, row)
        return {"picture": np.array(row["pictures"][item.start])}

    def _cut(self, scan_id: str) -> np.ndarray:
        import torch

        from neuroray.platform.models.layers.resampled_slices import resample_slices

        voxels = torch.tensor(np.asarray(self._store().read(scan_id).voxels, dtype=np.float32))
        return (resample_slices(voxels, self._slices).images[:, 0] * 255).round().to(torch.uint8).numpy()
