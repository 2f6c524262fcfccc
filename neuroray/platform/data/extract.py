"""Slice features of scans, by a frozen encoder: computed once, on Ray's actors or in process, and kept in the store."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from neuroray.errors import NeurorayError
from neuroray.platform.data.actor_records import take_records
from neuroray.platform.data.dataset import scan_dataset
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.readers import ScanReader
from neuroray.platform.models.layers.slices import SlicePlan, slice_positions_mm
from neuroray.storage.features import FeatureRecord, FeatureSet, FeatureStore
from neuroray.storage.store import ScanRecord, ScanStore

if TYPE_CHECKING:
    from jaxtyping import Float

Track = Callable[[Iterable[FeatureRecord], int], Iterable[FeatureRecord]]
"""Shows progress over so many records; `platform` itself shows nothing."""


class ExtractionError(NeurorayError, ValueError):
    """Features that cannot be made: scans that are no volumes, or an encoder that is another one elsewhere."""


class SliceModelConfig(Protocol):
    """The configuration of a model that looks at slices through a frozen encoder."""

    @property
    def slices(self) -> SlicePlan:
        """How a volume becomes pictures."""
        ...

    def build(self) -> Any:
        """The model, with `encoder` and `encode(volume, spacing_mm=)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What an extraction did.

    Attributes:
        fingerprint: Of slices, encoder and weights: by it the features are found again.
        description: What the fingerprint stands for.
        catalogue_version: Of the store, at which scans were read.
        extracted: Scans whose features were made now.
        num_present: Scans that had them already.
        num_slices: Rows per scan.
        num_channels: Length of a row.
    """

    fingerprint: str
    description: dict[str, Any]
    catalogue_version: int
    extracted: tuple[str, ...]
    num_present: int
    num_slices: int
    num_channels: int


class SliceExtractor:
    """An encoder with the store that its features go to; lives in an actor, or in this process.

    Args:
        store_uri: The store.
        version: Of its catalogue.
        config: Of the model whose encoder is wanted.
        num_threads: For torch.
        on_gpu: Whether to encode on the GPU.
        fingerprint: What the encoder must turn out to be; None: whatever it is.

    Raises:
        ExtractionError: the encoder here is another one (other weights under the same name, say).
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        config: SliceModelConfig,
        *,
        num_threads: int | None = None,
        on_gpu: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._slices = config.slices
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._model = config.build().eval()
        self.fingerprint: str = self._model.encoder.fingerprint(config.slices)
        if fingerprint not in (None, self.fingerprint):
            raise ExtractionError(
                "the encoder built here is not the one that was asked for",
                given=self.fingerprint[:16],
                expected=str(fingerprint)[:16],
                fix="use the same weights file and the same versions of torch and timm on every machine",
            )
        self._model.to(self._device)
        self.description = {**self._model.encoder.describe(), "slices": config.slices.to_json()}
        self.store = ScanStore(store_uri, version=version)
        self.features = FeatureStore(self.store, self.fingerprint, description=self.description)

    @property
    def num_channels(self) -> int:
        """Length of the features of a slice."""
        return self._model.encoder.num_channels

    def extract(self, record: ScanRecord, voxels: Float[np.ndarray, "x y z"]) -> FeatureRecord:
        """Encodes a scan and writes its features, not yet committed."""
        if voxels.ndim != 3:
            raise ExtractionError(
                f"{record.scan_id} is no volume",
                given=f"shape {voxels.shape}",
                expected="x y z",
                fix="choose T1w scans",
            )
        volume = torch.from_numpy(np.array(voxels)).to(self._device)
        with torch.inference_mode():
            found = self._model.encode(volume, spacing_mm=record.zooms_mm)
        slice_index = found.slice_index.cpu().numpy().astype(np.int64)
        features = FeatureSet(
            features=found.features.cpu().float().numpy(),
            mask=found.mask.cpu().numpy(),
            position_mm=slice_positions_mm(
                record.shape[-3:],
                np.array(record.affine).reshape(4, 4),
                self._slices,
                found.slice_place.cpu().double().numpy(),
            ).astype(np.float32),
            slice_index=slice_index,
        )
        return self.features.write(record, features, commit=False)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        """For `map_batches`: scans in, pickled out: the row of the features' catalogue, or the error of ours.

        Ray would wrap an error that is raised here, and lose what it wraps on the way to the driver.
        """
        pairs = zip(batch["scan_id"], batch["voxels"], strict=True)
        return {"made": [pickle.dumps(self._try(str(scan_id), voxels)) for scan_id, voxels in pairs]}

    def _try(self, scan_id: str, voxels: np.ndarray) -> FeatureRecord | NeurorayError:
        try:
            return self.extract(self.store.record(scan_id), voxels)
        except NeurorayError as error:
            return error


def extract_features(
    store: ScanStore,
    config: SliceModelConfig,
    scan_ids: Sequence[str],
    *,
    num_workers: int = 0,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    commit_every: int = 32,
    track: Track | None = None,
) -> Extraction:
    """Makes the features that are missing, and enters them in the store's catalogue of features.

    Commits come in groups, so that a run that is stopped keeps what it has done and the next one goes on from there.

    Args:
        store: The scans; read at its present version.
        config: Of the model whose encoder is wanted.
        scan_ids: Which scans; those whose features are there already cost nothing.
        num_workers: 0: in this process. n: by n actors of Ray, which must be running.
        num_cpus: Logical CPUs of an actor, and its torch threads.
        num_gpus: GPUs of an actor; in process, above 0: encode on the GPU.
        commit_every: Scans per commit.
        track: Shows progress.

    Raises:
        ExtractionError: a scan that is no volume; an actor whose encoder differs.
        StoreError: a scan that cannot be read, features that cannot be written.
        ModelError: weights that are missing, or a volume that cannot be cut into slices.
    """
    version, wanted = store.version, list(dict.fromkeys(scan_ids))
    local = SliceExtractor(store.uri, version, config, on_gpu=num_gpus > 0 and num_workers == 0)
    missing = local.features.missing(wanted)
    if num_workers == 0 or not missing:
        made = _extract_here(local, missing)
    else:
        made = _extract_by_actors(local, config, missing, num_workers, num_cpus, num_gpus)
    with closing(made):
        tracked = track(made, len(missing)) if track else made
        extracted = _commit_in_groups(local.features, tracked, commit_every)
    return Extraction(
        fingerprint=local.fingerprint,
        description=local.description,
        catalogue_version=version,
        extracted=tuple(sorted(extracted)),
        num_present=len(wanted) - len(missing),
        num_slices=config.slices.num_slices,
        num_channels=local.num_channels,
    )


def _extract_here(extractor: SliceExtractor, scan_ids: Sequence[str]) -> Generator[FeatureRecord]:
    reader = ScanReader(extractor.store.uri, extractor.store.version)
    for scan_id in scan_ids:
        voxels = reader(ReadItem(scan_id=scan_id))["voxels"]
        yield extractor.extract(extractor.store.record(scan_id), voxels)


def _extract_by_actors(
    local: SliceExtractor,
    config: SliceModelConfig,
    scan_ids: Sequence[str],
    num_workers: int,
    num_cpus: float,
    num_gpus: float,
) -> Generator[FeatureRecord]:
    import ray.data

    scans = scan_dataset(local.store.uri, local.store.version, scan_ids, read_concurrency=max(2, num_workers))
    made = scans.map_batches(
        SliceExtractor,
        fn_constructor_args=(local.store.uri, local.store.version, config),
        fn_constructor_kwargs={
            "num_threads": max(1, int(num_cpus)),
            "on_gpu": num_gpus > 0,
            "fingerprint": local.fingerprint,
        },
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(scan_ids))),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    yield from take_records(made)


def _commit_in_groups(store: FeatureStore, made: Iterable[FeatureRecord], commit_every: int) -> list[str]:
    done: list[str] = []
    waiting: list[FeatureRecord] = []
    try:
        for record in made:
            waiting.append(record)
            if len(waiting) >= commit_every:
                done += _commit(store, waiting)
    finally:
        done += _commit(store, waiting)  # also what was made before an error
    return done


def _commit(store: FeatureStore, waiting: list[FeatureRecord]) -> list[str]:
    records, waiting[:] = list(waiting), []
    if records:
        store.commit(records)
    return [record.scan_id for record in records]
