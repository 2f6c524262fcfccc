"""Tokens of scans: made once by a trained tokenizer, kept in the store, read as pairs of visits of one person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from neuroray.errors import NeurorayError
from neuroray.platform.data.brain_place import BrainPlace
from neuroray.platform.data.brain_volumes import BrainVolumeReader, Grid
from neuroray.platform.data.collate import Row
from neuroray.platform.data.older_weights import load_state
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.readers import StoreReader
from neuroray.platform.models.neuroar.vqvae_config import VQVAEConfig
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.faults import MissingObjectError
from neuroray.storage.features import FeatureRecord, FeatureSet, FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import require_profile
from neuroray.storage.store import ScanStore

if TYPE_CHECKING:
    from neuroray.platform.models.neuroar.vqvae import VQVAE

TOKENIZER = "neuroar_vqvae"
_FORMAT = 1
_COMMIT_EVERY = 32

Track = Callable[[Iterable[FeatureRecord], int], Iterable[FeatureRecord]]
"""Shows progress over so many scans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenActors:
    """Which actors of Ray, which must be running, encode.

    Attributes:
        number: How many, at most.
        num_cpus: Logical CPUs, and torch threads, of each.
        num_gpus: GPUs of each; above 0 it encodes there.
    """

    number: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0


class TokenError(NeurorayError, ValueError):
    """Tokens that cannot be made, or are none of this tokenizer: another version, a damaged cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A trained tokenizer.

    Attributes:
        folder: Its model folder.
        model: In eval mode, on the CPU.
        grid: Of the volumes that it was trained on.
        sha256: Of its weights.
        card: Its `config.json`.
        provenance: How it came about.
    """

    folder: str
    model: VQVAE
    grid: Grid
    sha256: str
    card: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What tokens are found by: of weights, configuration and grid."""
        parts = {"tokens": _FORMAT, "weights": self.sha256, "model": self.card["model"], "grid": list(self.grid)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def place(self) -> BrainPlace | None:
        """Where the brains of its training lay; None for one from before that was kept."""
        described = self.card.get("brain_place")
        return None if described is None else BrainPlace.from_json(described)

    @property
    def scale_sizes(self) -> list[int]:
        """Tokens of each scale."""
        return [x * y * z for x, y, z in self.model.config.scales(self.grid)]


def load_tokenizer(run: str) -> Tokenizer:
    """The tokenizer of a finished run, or of a model folder.

    Raises:
        TokenError: there is none.
        StoreError: it is damaged.
    """
    for place in (Location(run).child("model"), Location(run)):
        try:
            state, card, provenance = load_weights(place)
        except MissingObjectError:
            continue
        if card.get("model_name") == TOKENIZER:
            break
    else:
        raise TokenError(
            "there is no tokenizer here",
            given=run,
            expected="the run folder of a first stage, after its training has ended",
            fix="neuroray train neuroar/vqvae:base --store STORE --out RUN",
        )
    model = VQVAEConfig.from_json(card["model"]).build()
    load_state(model, state)
    x, y, z = card["grid_shape"]
    sha256 = json.loads(place.read_bytes("config.json"))["weights"]["sha256"]
    return Tokenizer(
        folder=place.uri,
        model=model.eval().requires_grad_(False),
        grid=(x, y, z),
        sha256=sha256,
        card=card,
        provenance=provenance,
    )


class TokenExtractor:
    """A tokenizer beside the store that its tokens go to; lives in an actor, or in this process.

    Args:
        store: The scans.
        tokenizer: Whose tokens.
        device: Where to encode.
    """

    def __init__(self, store: ScanStore, tokenizer: Tokenizer, *, device: str = "cpu") -> None:
        self.store, self.cache = store, open_tokens(store, tokenizer)
        self._reader = BrainVolumeReader(store.uri, store.version, tokenizer.grid, cache_bytes=0)
        self._scales = np.repeat(np.arange(len(tokenizer.scale_sizes)), tokenizer.scale_sizes)
        self._model, self._place, self._device = tokenizer.model.to(device), tokenizer.place, device

    def extract(self, scan_id: str) -> FeatureRecord:
        """Encodes one scan by itself, so that no other changes a bit, and writes its tokens, not yet committed."""
        import torch

        volume = np.array(self._reader(ReadItem(scan_id=scan_id))["volume"])
        if self._place is not None:
            self._place.require(volume, name=scan_id)
        tokens = self._model.encode(torch.from_numpy(volume)[None].to(self._device))[0].cpu().numpy()
        return self.cache.write(self.store.record(scan_id), _pack(tokens, self._scales), commit=False)


def extract_tokens(
    store: ScanStore,
    tokenizer: Tokenizer,
    scan_ids: Sequence[str],
    *,
    device: str = "cpu",
    actors: TokenActors | None = None,
    track: Track | None = None,
) -> list[str]:
    """Makes the tokens that are missing; commits in groups, so that what is done stays.

    Args:
        store: The scans; read at its present version.
        tokenizer: Whose tokens.
        scan_ids: Which scans; those whose tokens are there already cost nothing.
        device: Where to encode, in this process.
        actors: Ray's, which encode in place of this process; the same tokens.
        track: Shows progress.

    Returns:
        The scans whose tokens were made now.

    Raises:
        ProfileError: scans that were prepared otherwise than those that the tokenizer was trained on.
        PlanError: a scan that is no volume, without spread, or too large for the grid.
        UnregisteredError: a scan whose brain lies elsewhere than those of the tokenizer's training.
        StoreError: a scan that cannot be read, tokens that cannot be written.
        TokenError: an actor that finds another tokenizer in its folder.
    """
    require_profile([store.record(scan_id) for scan_id in scan_ids], tokenizer.card)
    cache = open_tokens(store, tokenizer)
    missing = cache.missing(scan_ids)
    if actors is None or not missing:
        extractor = TokenExtractor(store, tokenizer, device=device)
        made = (extractor.extract(scan_id) for scan_id in missing)
    else:
        # Imported here: Ray takes seconds, and is not needed without actors.
        from neuroray.platform.data.token_actors import extract_by_actors

        made = extract_by_actors(store, tokenizer, missing, actors)
    done: list[str] = []
    waiting: list[FeatureRecord] = []
    try:
        for record in made if track is None else track(made, len(missing)):
            waiting.append(record)
            done.append(record.scan_id)
            if len(waiting) >= _COMMIT_EVERY:
                cache.commit(waiting)
                waiting = []
    finally:
        if waiting:
            cache.commit(waiting)
    return sorted(done)


def open_tokens(store: ScanStore, tokenizer: Tokenizer) -> FeatureStore:
    """Where the tokens of this tokenizer are kept."""
    described = {"tokenizer_sha256": tokenizer.sha256, "model": tokenizer.card["model"], "grid": list(tokenizer.grid)}
    return FeatureStore(store, tokenizer.fingerprint, description=described)


def read_tokens(cache: FeatureStore, scan_id: str, *, num_tokens: int, num_codes: int) -> Int[np.ndarray, " token"]:
    """The tokens of a scan.

    Raises:
        StoreError: there are none, or they are damaged.
        TokenError: they are none of this tokenizer.
    """
    values = cache.read(scan_id).features[:, 0]
    if len(values) != num_tokens or not np.array_equal(values, np.clip(np.round(values), 0, num_codes - 1)):
        raise TokenError(
            f"the tokens of {scan_id} are none of this tokenizer",
            given=f"{len(values)} numbers of {values.min():g} to {values.max():g}",
            expected=f"{num_tokens} whole numbers of 0 to {num_codes - 1}",
            fix="delete the features folder of this tokenizer in the store, and make them again (neuroray extract)",
        )
    return values.astype(np.int64)


def check_tokens(cache: FeatureStore, scan_ids: Iterable[str], num_tokens: int, num_codes: int) -> None:
    """Reads all of them once, a few kB each: what is damaged is told before hours of training, and not within them.

    Raises:
        StoreError: tokens that are damaged.
        TokenError: tokens that are none of this tokenizer.
    """
    for scan_id in sorted(scan_ids):
        read_tokens(cache, scan_id, num_tokens=num_tokens, num_codes=num_codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """Two visits of one person.

    Attributes:
        previous: The scan that is given.
        target: The scan that is to be told.
        ages_years: At either.
    """

    previous: str
    target: str
    ages_years: tuple[float, float]

    @property
    def name(self) -> str:
        """What the pair is called where a scan would stand."""
        return f"{self.previous} {self.target}"

    @property
    def gap_years(self) -> float:
        """From the previous scan to the target."""
        return self.ages_years[1] - self.ages_years[0]


class TokenPairReader(StoreReader):
    """Reads `previous` and `target` (token) int64 and `ages_years` (2) float32; items are named by pairs.

    Args:
        store_uri: The store of the scans.
        version: Its catalogue version.
        fingerprint: Of the tokenizer.
        pairs: By name.
        num_tokens: Of a scan.
        num_codes: Of the codebook.
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        fingerprint: str,
        pairs: Mapping[str, TokenPair],
        *,
        num_tokens: int,
        num_codes: int,
    ) -> None:
        super().__init__(store_uri, version, cache_bytes=2**28)
        self._fingerprint, self._pairs = fingerprint, dict(pairs)
        self._num_tokens, self._num_codes = num_tokens, num_codes

    def size_bytes(self, item: ReadItem) -> int:
        """The same for all."""
        return 2 * 8 * self._num_tokens + 8

    def _open(self) -> FeatureStore:
        return FeatureStore(ScanStore(self._store_uri, version=self._version), self._fingerprint)

    def _read(self, item: ReadItem) -> Row:
        if item.scan_id not in self._pairs:
            raise PlanError(f"there is no pair {item.scan_id}")
        pair = self._pairs[item.scan_id]
        previous, target = (
            read_tokens(self._store(), scan_id, num_tokens=self._num_tokens, num_codes=self._num_codes)
            for scan_id in (pair.previous, pair.target)
        )
        return {"previous": previous, "target": target, "ages_years": np.array(pair.ages_years, np.float32)}


def _pack(tokens: Int[np.ndarray, " token"], scales: Int[np.ndarray, " token"]) -> FeatureSet:
    """In the store's format of features: one number per row, which float32 holds exactly, and its scale."""
    number = len(tokens)
    return FeatureSet(
        features=tokens.astype(np.float32)[:, None],
        mask=np.ones(number, bool),
        position_mm=np.zeros(number, np.float32),
        slice_index=scales.astype(np.int64),
    )
