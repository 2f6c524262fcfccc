"""Tokens by Ray's actors: each with the tokenizer, reading and encoding scan after scan."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import ray.data
import torch

from neuroray.errors import NeurorayError
from neuroray.platform.data.actor_records import take_records
from neuroray.platform.data.tokens import TokenActors, TokenError, TokenExtractor, Tokenizer, load_tokenizer
from neuroray.storage.features import FeatureRecord
from neuroray.storage.store import ScanStore

if TYPE_CHECKING:
    import numpy as np


class _Actor:
    """Names of scans in, pickled out: the row of the tokens' catalogue, or the error of ours.

    Ray would wrap an error that is raised here, and lose what it wraps on the way to the driver.
    """

    def __init__(self, store_uri: str, version: int, folder: str, sha256: str, actors: TokenActors) -> None:
        torch.set_num_threads(max(1, int(actors.num_cpus)))
        tokenizer = load_tokenizer(folder)
        if tokenizer.sha256 != sha256:
            raise TokenError(
                "an actor found another tokenizer than the one that was asked for",
                given=f"{tokenizer.sha256[:16]} in {folder}",
                expected=sha256[:16],
                fix="keep the run in a place that all machines see alike, as a bucket",
            )
        device = "cuda" if actors.num_gpus > 0 else "cpu"
        self._extractor = TokenExtractor(ScanStore(store_uri, version=version), tokenizer, device=device)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"made": [pickle.dumps(self._try(str(scan_id))) for scan_id in batch["scan_id"]]}

    def _try(self, scan_id: str) -> FeatureRecord | NeurorayError:
        try:
            return self._extractor.extract(scan_id)
        except NeurorayError as error:
            return error


def extract_by_actors(
    store: ScanStore, tokenizer: Tokenizer, scan_ids: Sequence[str], actors: TokenActors
) -> Generator[FeatureRecord]:
    """What actors have written, as they finish, not yet committed.

    Raises:
        TokenError: an actor finds another tokenizer.
        NeurorayError: whatever a scan raises.
    """
    number = min(actors.number, len(scan_ids))
    names = ray.data.from_items([{"scan_id": scan_id} for scan_id in scan_ids], override_num_blocks=len(scan_ids))
    made = names.map_batches(
        _Actor,
        fn_constructor_args=(store.uri, store.version, tokenizer.folder, tokenizer.sha256, actors),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=number),
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus,
    )
    yield from take_records(made)
