"""A place that holds objects, `s3://`, `gs://`, `file://` or a plain path, behind one type that reads and writes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, LocalStore, S3Store

from neuroray.storage.faults import MissingObjectError, ObjectExistsError, StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from zarr.abc.store import Store

_SCHEMES: Final = ("s3", "gs", "file")
_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_KEY_PART: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.@=+-]*$")
_READ_STEP_BYTES: Final = 8 * 2**20
# A client that cannot reach its server has to say so within a minute or so; the library would try for three.
_RETRIES: Final[RetryConfig] = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_TIMEOUTS: Final[ClientConfig] = {"connect_timeout": "10s", "timeout": "120s"}


class Location:
    """A folder or a prefix in a bucket: objects by key, keys relative to it.

    It is only an address: nothing is opened or made until an object is read or written, it can be pickled, and it holds
    no credentials. Those are taken, where they are used, from the usual environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...) or the machine's
    role.

    Args:
        uri: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder`, or a path (relative ones are made absolute at
            once, for Ray changes the working directory of its workers).

    Raises:
        StoreError: a scheme that is not known, no bucket, or credentials inside the address.
    """

    __slots__ = ("_client", "bucket", "path", "scheme")

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.scheme, self.bucket, self.path = _parse_uri(os.fspath(uri))
        self._client: S3Store | GCSStore | LocalStore | None = None

    @property
    def uri(self) -> str:
        """The address: an absolute path for a local folder, `scheme://bucket/prefix` otherwise."""
        return self.path if self.is_local else f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return self.scheme == "file"

    def child(self, *parts: str) -> Location:
        """The location below this one.

        Raises:
            StoreError: a part that could lead elsewhere (`..`, an absolute path, an odd character).
        """
        key = "/".join(parts)
        _check_key(key)
        return Location(f"{self.uri}/{key}")

    def read_bytes(self, key: str) -> bytes:
        """The whole object.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it cannot be read.
        """
        _check_key(key)
        with self.telling(f"cannot read {key}"):
            return obstore.get(self._open(), key).bytes().to_bytes()

    def read_range(self, key: str, start: int, stop: int) -> memoryview:
        """The bytes `start` to `stop - 1` of an object.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it cannot be read, or ends before `stop`.
        """
        _check_key(key)
        with self.telling(f"cannot read {key}"):
            data = memoryview(obstore.get_range(self._open(), key, start=start, end=stop))
        if len(data) != stop - start:
            raise StoreError(f"{key} in {self.uri} is too short", given=f"{len(data)} bytes of {start} to {stop}")
        return data

    def digest(self, key: str) -> tuple[int, str]:
        """Size in bytes and SHA-256 (hex) of an object, read in steps.

        Raises:
            MissingObjectError: there is no such object.
        """
        _check_key(key)
        size_bytes, sha256 = 0, hashlib.sha256()
        with self.telling(f"cannot read {key}"):
            for step in obstore.get(self._open(), key).stream(min_chunk_size=_READ_STEP_BYTES):
                size_bytes += len(step)
                sha256.update(step)
        return size_bytes, sha256.hexdigest()

    def write_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Writes an object whole: a reader sees the old one or the new one, never a part.

        Raises:
            ObjectExistsError: `create_only` and it is already there.
            StoreError: it cannot be written.
        """
        _check_key(key)
        with self.telling(f"cannot write {key}"):
            obstore.put(self._open(create=True), key, data, mode="create" if create_only else "overwrite")

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        _check_key(key)
        try:
            with self.telling(f"cannot look for {key}"):
                obstore.head(self._open(), key)
        except MissingObjectError:
            return False
        return True

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Keys and sizes in bytes of all objects below a prefix (a whole folder name), sorted; empty where none is."""
        if prefix:
            _check_key(prefix)
        try:
            with self.telling(f"cannot list {prefix or 'it'}"):
                pages = obstore.list(self._open(), prefix or None)
                return sorted((item["path"], item["size"]) for page in pages for item in page)
        except MissingObjectError:
            return []

    def names(self) -> list[str]:
        """Names of the folders and objects directly in this location, sorted; empty where there is none."""
        try:
            with self.telling("cannot list it"):
                found = obstore.list_with_delimiter(self._open())
        except MissingObjectError:
            return []
        return sorted([*found["common_prefixes"], *(item["path"] for item in found["objects"])])

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        _check_key(key)
        try:
            with self.telling(f"cannot delete {key}"):
                obstore.delete(self._open(), key)
        except MissingObjectError:
            return

    def zarr_store(self, prefix: str = "", *, read_only: bool) -> Store:
        """A Zarr store rooted at a prefix of this location."""
        from zarr.storage import LocalStore as ZarrLocalStore
        from zarr.storage import ObjectStore

        place = self.child(prefix) if prefix else self
        if place.is_local and read_only:
            return ZarrLocalStore(place.path, read_only=True)
        return ObjectStore(place._open(create=not read_only), read_only=read_only)

    def delta_uri(self, prefix: str = "") -> str:
        """The address of a Delta table at a prefix of this location.

        Raises:
            StoreError: a path that the Delta library would take for another.
        """
        place = self.child(prefix) if prefix else self
        if not place.is_local:
            return place.uri
        if re.search("%[0-9A-Fa-f]{2}", place.path):
            raise StoreError(
                "a path holds % and two digits", given=place.path, fix="choose a folder without % in its name"
            )
        return Path(place.path).as_uri()

    @property
    def delta_options(self) -> dict[str, str]:
        """What the Delta library has to be told besides the environment, which it reads itself; no credentials."""
        if self.scheme != "s3":
            return {}
        options = {"AWS_ALLOW_HTTP": "true"} if _s3_endpoint().startswith("http://") else {}
        if "AWS_ENDPOINT_URL_S3" in os.environ:
            options["AWS_ENDPOINT_URL"] = _s3_endpoint()
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            options["AWS_REGION"] = "us-east-1"
        return options

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turns every error of the object-store library in the block into a StoreError that says what, and where."""
        fault = f"{what} in {self.uri}"
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(fault, expected="an object that exists", fix="check the address") from error
        except (AlreadyExistsError, FileExistsError) as error:
            raise ObjectExistsError(fault, expected="that nothing is there yet") from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            fix = "check the credentials in the environment (AWS_ACCESS_KEY_ID, ...) and the rights they carry"
            raise StoreError(fault, given=_first_line(error), expected="permission", fix=fix) from error
        except (BaseError, OSError, ValueError) as error:
            fix = (
                "check the address, the network and the free space" if self.is_local else "check the address and AWS_*"
            )
            raise StoreError(fault, given=_first_line(error), fix=fix) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Location({self.uri!r})"

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return Location, (self.uri,)

    def _open(self, *, create: bool = False) -> Any:
        if self._client is None:
            if self.is_local and not create and not Path(self.path).is_dir():
                raise FileNotFoundError(self.path)
            self._client = self._connect()
        return self._client

    def _connect(self) -> S3Store | GCSStore | LocalStore:
        if self.is_local:
            return LocalStore(self.path, mkdir=True)
        prefix = self.path or None
        if self.scheme == "gs":
            return GCSStore(self.bucket, prefix=prefix, client_options=_TIMEOUTS, retry_config=_RETRIES)
        client_options: ClientConfig = {**_TIMEOUTS, "allow_http": _s3_endpoint().startswith("http://")}
        return S3Store(self.bucket, prefix=prefix, client_options=client_options, retry_config=_RETRIES)


def check_id(text: str, *, what: str) -> str:
    """Returns the text when it is safe as a part of a path, on disk and in a bucket.

    Raises:
        StoreError: empty, very long, with `..`, or with any character outside letters, digits, `_`, `-`, `.`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", text) or ".." in text or text.endswith("."):
        raise StoreError(
            f"{what} cannot be part of a path",
            given=repr(text[:80]),
            expected="letters, digits, '_', '-' and single '.', at most 200, the first a letter or digit",
        )
    return text


def _parse_uri(uri: str) -> tuple[str, str, str]:
    match = _SCHEME.match(uri)
    if match is None:
        if not uri:
            raise StoreError("an address of a store is empty", expected="a path, file://, s3:// or gs://")
        return "file", "", str(Path(uri).expanduser().absolute())
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise StoreError(
            "an address has an unknown scheme", given=f"{scheme}://", expected="a path, file://, s3://, gs://"
        )
    # Never echoed: what stands before the @ may be a secret.
    if "@" in parts.netloc or parts.query:
        fix = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL in the environment"
        raise StoreError(
            "an address carries credentials or options", expected=f"{scheme}://bucket/prefix alone", fix=fix
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(
                "a file:// address names a host", given=parts.netloc, fix="write file:///folder, with three /"
            )
        return "file", "", str(Path(unquote(parts.path)).absolute())
    if not parts.netloc:
        raise StoreError("an address names no bucket", given=uri, expected=f"{scheme}://bucket/prefix")
    path = parts.path.strip("/")
    if path:
        _check_key(path)
    return scheme, parts.netloc, path


def _check_key(key: str) -> None:
    """Keys are made of plain parts, so that none can leave its location."""
    if all(_KEY_PART.match(part) for part in key.split("/")):
        return
    raise StoreError(
        "a key cannot be used", given=repr(key[:120]), expected="parts of letters, digits and _ . @ = + - joined by /"
    )


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
