"""Whether scans were prepared alike: among each other, and as the model that is to look at them expects."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from neuroray.storage.profiles.profile import ProfileError
from neuroray.storage.profiles.stored import StoredProfile


class PreparedRecord(Protocol):
    """A row of the catalogue, as far as it is asked here."""

    @property
    def scan_id(self) -> str:
        """The scan."""
        ...

    @property
    def prepared_by(self) -> tuple[str, str]:
        """Name and hash of its profile."""
        ...


class ProfileSource(Protocol):
    """A store, as far as it is asked here."""

    def read_profile(self, scan_id: str) -> StoredProfile:
        """The profile of one scan."""
        ...


def find_common_profile(store: ProfileSource, records: Sequence[PreparedRecord]) -> StoredProfile:
    """The profile that all these scans have had; reads the group of one of them.

    Raises:
        ProfileError: they have had several, or there is no scan.
        StoreError: that group cannot be opened.
    """
    found = _count(records)
    if len(found) != 1:
        raise ProfileError(
            "the scans were not all prepared alike",
            given=_tell(found) or "no scan",
            expected="one profile, of one version and with the same options",
            fix="ingest all of them with one --profile, or keep each profile in a store of its own",
        )
    return store.read_profile(records[0].scan_id)


def require_profile(records: Iterable[PreparedRecord], card: Mapping[str, Any]) -> None:
    """Refuses scans that were prepared otherwise than those a model was trained on.

    Args:
        records: The scans that it is to look at.
        card: The model's `config.json`.

    Raises:
        ProfileError: names how many scans have had which profile.
    """
    wanted = read_model_profile(card)
    others = _count(record for record in records if record.prepared_by[1] != wanted.sha256)
    if others:
        raise ProfileError(
            "scans were prepared otherwise than those that the model was trained on",
            given=_tell(others),
            expected=_tell_one((wanted.name, wanted.sha256)),
            fix=f"ingest them with --profile {wanted.name}, and the versions of libraries that the model names",
        )


def read_model_profile(card: Mapping[str, Any]) -> StoredProfile:
    """The profile of the scans that a model was trained on; native for models of before there were profiles."""
    return StoredProfile.from_json(card.get("profile"))


def _count(records: Iterable[PreparedRecord]) -> dict[tuple[str, str], int]:
    return dict(collections.Counter(record.prepared_by for record in records))


def _tell(found: Mapping[tuple[str, str], int]) -> str:
    return ", ".join(f"{number} {_tell_one(profile)}" for profile, number in sorted(found.items()))


def _tell_one(profile: tuple[str, str]) -> str:
    return f"{profile[0]} ({profile[1][:8]})"
