"""A scan's file on this machine, with its digest: where it lies, fetched from a bucket, or converted from DICOM."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from neuroray.storage.bids import RemoteObject, ScanFile
from neuroray.storage.dicom import convert_series, list_dicom_files
from neuroray.storage.locations import Location
from neuroray.storage.scan import ScanError
from neuroray.storage.volume_files import find_volume_files

# A file may be larger than its voxels by headers and extensions, and by what compression adds to noise.
_MOST_OVER_VOXELS: Final = 1.1
_HEADER_ROOM_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file, or a pair of files, to be read from `path`.

    Attributes:
        path: Where it lies on this machine; of a pair, the .hdr.
        sha256: Digest of its bytes; of a pair, of both files one after the other; of a series, of all its files.
        state: Size and time of change of each file when the digest was taken.
        folder: The temporary folder that holds it; None for a file that is read where it lies.
        sidecar: What a conversion said of the scan.
    """

    path: Path
    sha256: str
    state: tuple[tuple[int, int], ...]
    folder: tempfile.TemporaryDirectory[str] | None = None
    sidecar: dict[str, Any] = field(default_factory=dict)

    def discard(self) -> None:
        """Removes what was fetched; a file that lies where it always lay is left alone."""
        if self.folder is not None:
            self.folder.cleanup()

    def check_unchanged(self) -> None:
        """Whether what was read since is what the digest was taken of.

        Raises:
            ScanError: the file was written to meanwhile.
        """
        files = list_dicom_files(self.path) if self.path.is_dir() else _files_of(self.path)
        if _state_of(files) != self.state:
            raise ScanError(
                f"{self.path.name}: the file changed while it was read",
                fix="wait until whoever writes it has finished, then ingest again",
            )


def fetch_file(file: ScanFile, *, max_bytes: int) -> FetchedFile:
    """The file of a scan with its digest, not converted yet.

    Args:
        file: What was listed.
        max_bytes: The most that its voxels may take; larger objects are not fetched from a bucket.

    Raises:
        ScanError: it is not there, cannot be read, or is too large.
        StoreError: the bucket cannot be read.
    """
    if file.objects:
        return _fetch_objects(file, max_bytes)
    files = list_dicom_files(file.path) if file.is_dicom else _files_of(file.path)
    state = _state_of(files)
    return FetchedFile(path=file.path, sha256=_digest(files), state=state)


def unpack(file: ScanFile, fetched: FetchedFile, *, max_bytes: int) -> FetchedFile:
    """The volume to read: what was fetched, or what a DICOM series was converted to.

    Raises:
        ScanError: the series cannot be converted.
    """
    if not file.is_dicom:
        return fetched
    folder = tempfile.TemporaryDirectory(prefix="neuroray-dicom-")
    try:
        volume, sidecar = convert_series(fetched.path, file.series, Path(folder.name), file.name, max_bytes=max_bytes)
        fetched.check_unchanged()
    except BaseException:
        folder.cleanup()
        raise
    finally:
        fetched.discard()
    return FetchedFile(path=volume, sha256=fetched.sha256, state=_state_of([volume]), folder=folder, sidecar=sidecar)


def _fetch_objects(file: ScanFile, max_bytes: int) -> FetchedFile:
    size_bytes = sum(item.size_bytes for item in file.objects)
    limit_bytes = int(max_bytes * _MOST_OVER_VOXELS) + _HEADER_ROOM_BYTES
    if size_bytes > limit_bytes:
        raise ScanError(
            f"{file.name}: the object is too large to be fetched",
            given=f"{size_bytes} bytes",
            expected=f"at most {limit_bytes}",
            fix="if it is a scan, raise --max-gib",
        )
    folder = tempfile.TemporaryDirectory(prefix="neuroray-fetch-")
    try:
        digests = [_fetch(item, Path(folder.name)) for item in file.objects]
    except BaseException:
        folder.cleanup()
        raise
    path = Path(folder.name) if file.is_dicom else Path(folder.name) / file.path.name
    files = list_dicom_files(path) if file.is_dicom else _files_of(path)
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return FetchedFile(path=path, sha256=sha256, state=_state_of(files), folder=folder)


def _fetch(item: RemoteObject, folder: Path) -> str:
    return Location(item.prefix).fetch(item.key, folder / item.key.rpartition("/")[2])


def _files_of(path: Path) -> list[Path]:
    try:
        volume = find_volume_files(path)
    except ScanError:
        return [path]  # whatever it is, reading it will say so
    return [volume.header, volume.voxels] if volume.is_pair else [volume.header]


def _state_of(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    stats = [file.stat() for file in files if file.exists()]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of the digests of several; what is missing is left to the reader to name."""
    digests = [_digest_one(path) for path in files if path.is_file()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest_one(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ScanError(f"{path.name}: the file cannot be read", given=error.strerror or str(error)) from error
