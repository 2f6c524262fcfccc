"""Slice features that `neuroray extract` left in a store, averaged over the slices of each scan."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from neuroray.platform.baselines.errors import BaselineError
from neuroray.storage.features import FeatureStore, read_feature_catalogues
from neuroray.storage.store import ScanStore


def find_features(store: ScanStore, scan_ids: Sequence[str], named: str | None) -> tuple[FeatureStore | None, str]:
    """The features of one encoder that all these scans have, or None and why there are none.

    Args:
        store: The scans.
        scan_ids: Who must have features.
        named: The first 16 digits, or all, of their fingerprint; the only complete ones where None.

    Raises:
        BaselineError: the named ones are not there, or not of every scan.
    """
    known = {path.removeprefix("features/"): _open(store, path) for path in read_feature_catalogues(store.location)}
    if named is not None:
        if named[:16] not in known:
            raise BaselineError("there are no such features", given=named, expected=", ".join(known) or "none yet")
        opened = known[named[:16]]
        missing = len(opened.missing(scan_ids))
        if missing:
            raise BaselineError(f"{missing} scans have no features of {named}", fix="neuroray extract")
        return opened, ""
    complete = [each for each in known.values() if not each.missing(scan_ids)]
    if len(complete) == 1:
        return complete[0], ""
    if complete:
        names = ", ".join(each.fingerprint[:16] for each in complete)
        return None, f"the store has features of several encoders; name one: --features, of {names}"
    return None, "the store has no slice features of all scans (neuroray extract)"


def _open(store: ScanStore, path: str) -> FeatureStore:
    """By the whole fingerprint, of which the folder's name is the beginning."""
    mark = json.loads(store.location.child(path).read_bytes("features.json"))
    return FeatureStore(store, mark["fingerprint"])


def pool_slices(features: FeatureStore, scan_ids: Sequence[str]) -> dict[str, Float32[np.ndarray, " channel"]]:
    """Mean over the slices of each scan, padding left out."""
    found = {}
    for scan_id in scan_ids:
        one = features.read(scan_id)
        found[scan_id] = np.asarray(one.features)[np.asarray(one.mask)].mean(axis=0, dtype=np.float32)
    return found
