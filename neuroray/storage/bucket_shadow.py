"""A folder of a bucket as a local folder of the same shape: small files with their content, scans as empty files.

So the scans of a bucket are told apart by the very code that does it for a folder. Nothing large is fetched: that is
left to whoever reads a scan.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Final

from neuroray.storage.bids import RemoteObject
from neuroray.storage.dicom import MAGIC_BYTES, find_candidates
from neuroray.storage.faults import StoreError
from neuroray.storage.locations import Location
from neuroray.storage.scan import ScanError
from neuroray.storage.volume_files import find_suffix

_TEXT_SUFFIXES: Final = (".json", ".tsv", ".csv")
_MAX_TEXT_BYTES: Final = 16 * 2**20
_REQUESTS_AT_ONCE: Final = 32
_FOREIGN_FOLDERS: Final = ("derivatives", "sourcedata", "code", "stimuli")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketShadow:
    """The local folder, and which object each of its files stands for.

    Attributes:
        folder: The local folder.
        source: What was asked for, as a path in it: the folder itself, a glob, or one file.
        objects: Object by path relative to the folder.
        notices: What could not be taken over.
    """

    folder: Path
    source: str
    objects: dict[str, RemoteObject]
    notices: tuple[str, ...] = ()

    def find(self, paths: Sequence[Path]) -> tuple[RemoteObject, ...]:
        """The objects of local files, in order; files that stand for none are left out."""
        keys = [path.relative_to(self.folder).as_posix() for path in paths]
        return tuple(self.objects[key] for key in keys if key in self.objects)


def is_bucket(source: str) -> bool:
    """Whether an address names a bucket."""
    return source.startswith(("s3://", "gs://"))


@contextlib.contextmanager
def shadow_bucket(source: str) -> Iterator[BucketShadow]:
    """The shadow of a prefix, of a glob in a bucket, or of one object; gone when the block ends.

    Sidecars of one object are looked for in its own folder only.

    Raises:
        ScanError: nothing is there.
        StoreError: the bucket cannot be listed.
    """
    prefix, pattern = _split(source)
    location = Location(prefix)
    listed = [(key, size) for key, size in location.list() if _is_wanted(key)]
    if not listed:
        raise ScanError(f"{source}: there is nothing", fix="check the address")
    with tempfile.TemporaryDirectory(prefix="neuroray-listing-") as name:
        folder = Path(name)
        usable = [(key, size) for key, size in listed if _is_usable(location, key)]
        for key, _ in usable:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()
        objects = {key: RemoteObject(prefix=location.uri, key=key, size_bytes=size) for key, size in usable}
        _fill_in(location, folder, objects)
        num_odd = len(listed) - len(usable)
        odd = f"{num_odd} objects were left out: their names hold characters other than letters, digits and _ . @ = + -"
        yield BucketShadow(
            folder=folder,
            source=str(folder / pattern) if pattern else name,
            objects=objects,
            notices=(odd,) if num_odd else (),
        )


def _split(source: str) -> tuple[str, str]:
    """The prefix to list, and the pattern or file below it."""
    scheme, _, rest = source.partition("://")
    parts = rest.rstrip("/").split("/")
    magic = next((index for index, part in enumerate(parts) if has_magic(part)), None)
    if magic is None and len(parts) > 1 and find_suffix(parts[-1]):
        magic = len(parts) - 1
    if magic is None:
        return source, ""
    return f"{scheme}://{'/'.join(parts[:magic])}", "/".join(parts[magic:])


def _is_wanted(key: str) -> bool:
    parts = PurePosixPath(key).parts
    return not any(part.startswith(".") or part in _FOREIGN_FOLDERS for part in parts)


def _is_usable(location: Location, key: str) -> bool:
    try:
        location.child(key)
    except StoreError:
        return False
    return True


def _fill_in(location: Location, folder: Path, objects: dict[str, RemoteObject]) -> None:
    """Sidecars and tables whole; of files that may be DICOM, what tells whether they are."""
    texts = [
        key
        for key, item in objects.items()
        if key.lower().endswith(_TEXT_SUFFIXES) and 0 < item.size_bytes <= _MAX_TEXT_BYTES
    ]
    folders = {(folder / key).parent for key in objects}
    is_bids = "dataset_description.json" in objects or any(key.startswith("sub-") for key in objects)
    unknown = [] if is_bids else [path for place in folders for path in find_candidates(place)]
    heads = [path.relative_to(folder).as_posix() for path in unknown]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for key, content in zip(texts, pool.map(location.read_bytes, texts), strict=True):
            (folder / key).write_bytes(content)
        heads = [key for key in heads if objects[key].size_bytes >= MAGIC_BYTES]
        for key, content in zip(
            heads, pool.map(lambda key: location.read_range(key, 0, MAGIC_BYTES), heads), strict=True
        ):
            (folder / key).write_bytes(content)
