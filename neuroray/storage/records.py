"""The row of a scan in a store's catalogue: who, what, where, and how to know that it is whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from neuroray.storage.catalogue import utc_now
from neuroray.storage.profiles.profile import NATIVE, NATIVE_SHA256

if TYPE_CHECKING:
    from neuroray.storage.participants import Participant

_LABELS: Final = ("age_years", "sex", "diagnosis", "cognition", "family_id", "site")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRecord:
    """One scan in a store.

    Labels are those of the time of the scan; None where they are not known.

    Attributes:
        scan_id: Its name, unique in the store.
        subject: The person.
        modality: "T1w", "bold", ...
        path: Its Zarr group, relative to the store.
        shape: `x y z` or `time x y z` of the canonical (RAS+) grid.
        dtype: Element type of the values.
        affine: Voxel indices to world in mm, 16 numbers row by row.
        voxels_sha256: Digest of the voxels as a reader sees them: numbers, scale, affine and time.
        manifest_sha256: Digest of the manifest that lists every object of the group.
        size_bytes: All objects of the group, as stored.
        session: The visit, where there are several.
        family_id: Relatives share it; splits keep them together.
        extra: Other columns of the participants' table.
        source_name: The file it came from, as the ingest chose to call it.
        source_sha256: Digest of that file; "" where not taken.
        derivation_sha256: Digest of what else decided the voxels (sidecar, version of the reading); None: not taken.
        flags: What a person should know of it.
        profile: Name of the preprocessing profile; None in rows from before there were any, which are all native.
        profile_sha256: Fingerprint of that profile; None as above.
        written_at: UTC, ISO 8601.
    """

    scan_id: str
    subject: str
    modality: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    zooms_mm: tuple[float, ...]
    affine: tuple[float, ...]
    voxels_sha256: str
    manifest_sha256: str
    size_bytes: int
    written_at: str
    session: str | None = None
    age_years: float | None = None
    sex: str | None = None
    diagnosis: str | None = None
    cognition: float | None = None
    family_id: str | None = None
    site: str | None = None
    extra: dict[str, str] = field(default_factory=dict, hash=False)
    repetition_time_s: float | None = None
    source_name: str = ""
    source_sha256: str = ""
    derivation_sha256: str | None = None
    flags: tuple[str, ...] = ()
    profile: str | None = None
    profile_sha256: str | None = None

    @property
    def key(self) -> str:
        """The scan's id: one record of each counts."""
        return self.scan_id

    @property
    def prepared_by(self) -> tuple[str, str]:
        """Name and fingerprint of the profile, whatever the age of the row."""
        return self.profile or NATIVE, self.profile_sha256 or NATIVE_SHA256

    @property
    def participant(self) -> Participant:
        """What the row says of the person."""
        from neuroray.storage.participants import Participant

        labels: dict[str, Any] = {name: getattr(self, name) for name in _LABELS}
        return Participant(subject=self.subject, session=self.session, extra=self.extra, **labels)

    def relabelled(
        self, *, subject: str, session: str | None, modality: str, participant: Participant | None
    ) -> ScanRecord:
        """The same scan with what is known of it today; the same record where nothing changed."""
        labels = {"subject": subject, "session": session, "modality": modality, **describe_person(participant)}
        changed = dataclasses.replace(self, **labels)
        return self if changed == self else dataclasses.replace(changed, written_at=utc_now())


def describe_person(participant: Participant | None) -> dict[str, Any]:
    """The columns of a person's labels, all of them; empty where nothing is known."""
    if participant is None:
        return {**dict.fromkeys(_LABELS), "extra": {}}
    return {**{name: getattr(participant, name) for name in _LABELS}, "extra": dict(participant.extra)}


SCAN_COLUMNS: Final = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("session", pa.string()),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("age_years", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("diagnosis", pa.string()),
        pa.field("cognition", pa.float64()),
        pa.field("family_id", pa.string()),
        pa.field("site", pa.string()),
        pa.field("extra", pa.map_(pa.string(), pa.string())),
        pa.field("path", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("zooms_mm", pa.list_(pa.float64()), nullable=False),
        pa.field("affine", pa.list_(pa.float64()), nullable=False),
        pa.field("repetition_time_s", pa.float64()),
        pa.field("voxels_sha256", pa.string(), nullable=False),
        pa.field("manifest_sha256", pa.string(), nullable=False),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("derivation_sha256", pa.string()),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("profile", pa.string()),
        pa.field("profile_sha256", pa.string()),
        pa.field("written_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
