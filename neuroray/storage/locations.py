"""A place that holds objects, `s3://`, `gs://`, `file://` or a plain path, behind one type that reads and writes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError
from obstore.store import GCSStore, LocalStore, S3Store

from neuroray.storage.credentials import find_keys
from neuroray.storage.faults import ForbiddenError, MissingObjectError, ObjectExistsError, StoreError
from neuroray.storage.retries import describe, find_refusal, keep_trying, read_policy, shown

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from zarr.abc.store import Store

_SCHEMES: Final = ("s3", "gs", "file")
_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_KEY_PART: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.@=+-]*$")
_READ_STEP_BYTES: Final = 8 * 2**20
_CONNECT_TIMEOUT: Final = "10s"
_WHOLE_TIMEOUT: Final = "1h"  # of one request; what does not move is found by its silence long before
_RETRIES_OF_A_PART: Final = 8  # by the library itself, for the parts of a large object that is written
_RETRIES_OF_A_LOOK: Final = 3  # by the Delta library itself, for one of many requests that open a table
_Client = S3Store | GCSStore | LocalStore


class Location:
    """A folder or a prefix in a bucket: objects by key, keys relative to it.

    It is only an address: nothing is opened or made until an object is read or written, it can be pickled, and it holds
    no credentials. Those are taken, where they are used, from the usual environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), from profiles
    (`AWS_PROFILE`, `~/.aws`) or the machine's role.

    Whatever a busy server or a bad network spoils is tried again, until a deadline (`neuroray.storage.retries`).

    Args:
        uri: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder`, or a path (relative ones are made absolute at
            once, for Ray changes the working directory of its workers).

    Raises:
        StoreError: a scheme that is not known, no bucket, or credentials inside the address.
    """

    __slots__ = ("_clients", "bucket", "path", "scheme")

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.scheme, self.bucket, self.path = _parse_uri(os.fspath(uri))
        self._clients: dict[bool, _Client] = {}

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
        return self._try(f"cannot read {key}", lambda: obstore.get(self._open(), key).bytes().to_bytes())

    def read_range(self, key: str, start: int, stop: int) -> memoryview:
        """The bytes `start` to `stop - 1` of an object.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it cannot be read, or ends before `stop`.
        """
        _check_key(key)

        def read() -> memoryview:
            if self.is_local:
                return memoryview(obstore.get_range(self._open(), key, start=start, end=stop))
            answer = obstore.get(self._open(), key, options={"range": (start, stop)})
            return memoryview(check_length(answer.bytes(), answer.range))

        data = self._try(f"cannot read {key}", read)
        if len(data) != stop - start:
            raise StoreError(f"{key} in {self.uri} is too short", given=f"{len(data)} bytes of {start} to {stop}")
        return data

    def digest(self, key: str) -> tuple[int, str]:
        """Size in bytes and SHA-256 (hex) of an object, read in steps.

        Raises:
            MissingObjectError: there is no such object.
        """
        _check_key(key)

        def read() -> tuple[int, str]:
            size_bytes, sha256 = 0, hashlib.sha256()
            for step in obstore.get(self._open(), key).stream(min_chunk_size=_READ_STEP_BYTES):
                size_bytes += len(step)
                sha256.update(step)
            return size_bytes, sha256.hexdigest()

        return self._try(f"cannot read {key}", read)

    def fetch(self, key: str, path: Path) -> str:
        """Copies an object into a file of this machine, in one go, so that it is one version of it; gives its SHA-256.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it cannot be read, or the file cannot be written.
        """
        _check_key(key)

        def read() -> str:
            sha256, answer = hashlib.sha256(), obstore.get(self._open(), key)
            with path.open("wb") as file:
                for step in answer.stream(min_chunk_size=_READ_STEP_BYTES):
                    sha256.update(step)
                    file.write(step)
                if file.tell() != answer.meta["size"]:
                    raise ConnectionError(f"the answer ended prematurely, after {file.tell()} bytes")
            return sha256.hexdigest()

        return self._try(f"cannot read {key}", read)

    def write_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Writes an object whole: a reader sees the old one or the new one, never a part.

        Raises:
            ObjectExistsError: `create_only` and it is already there. An object that holds the same bytes counts as
                written by this call when an earlier try of it may have done so, its answer lost.
            StoreError: it cannot be written.
        """
        _check_key(key)
        what = f"cannot write {key}"
        if not create_only:
            self._try(what, lambda: obstore.put(self._open(to_write=True), key, data))
            return
        num_tries = 0

        def create() -> None:
            nonlocal num_tries
            num_tries += 1
            try:
                # By the client that tries once: whether an answer was lost has to be known here.
                obstore.put(self._open(create=True), key, data, mode="create")
            except (AlreadyExistsError, FileExistsError):
                if num_tries == 1 or obstore.get(self._open(), key).bytes() != data:
                    raise

        self._try(what, create)

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        _check_key(key)

        def look() -> None:
            try:
                obstore.head(self._open(), key)
            except (GenericError, PermissionDeniedError) as error:
                if "status code: 40" not in str(error):
                    raise
                # The answer to HEAD has no body that could say why it refused.
                obstore.get(self._open(), key, options={"range": (0, 1)})

        try:
            self._try(f"cannot look for {key}", look)
        except MissingObjectError:
            return False
        return True

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Keys and sizes in bytes of all objects below a prefix (a whole folder name), sorted; empty where none is."""
        if prefix:
            _check_key(prefix)

        def read() -> list[tuple[str, int]]:
            pages = obstore.list(self._open(), prefix or None)
            return sorted((item["path"], item["size"]) for page in pages for item in page)

        try:
            return self._try(f"cannot list {prefix or 'it'}", read)
        except MissingObjectError:
            return []

    def names(self) -> list[str]:
        """Names of the folders and objects directly in this location, sorted; empty where there is none."""
        try:
            found = self._try("cannot list it", lambda: obstore.list_with_delimiter(self._open()))
        except MissingObjectError:
            return []
        return sorted([*found["common_prefixes"], *(item["path"] for item in found["objects"])])

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        _check_key(key)
        try:
            self._try(f"cannot delete {key}", lambda: obstore.delete(self._open(), key))
        except MissingObjectError:
            return

    def zarr_store(self, prefix: str = "", *, read_only: bool) -> Store:
        """A Zarr store rooted at a prefix of this location; what fails in a bucket is tried again there, too."""
        from zarr.storage import LocalStore as ZarrLocalStore

        from neuroray.storage.chunk_store import ChunkStore

        place = self.child(prefix) if prefix else self
        if place.is_local and read_only:
            return ZarrLocalStore(place.path, read_only=True)
        return ChunkStore(place._open(to_write=not read_only), place, read_only=read_only)

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
        """What the Delta library has to be told besides the environment, which it reads itself.

        With the keys of a profile or role, for the moment: to be used at once, and neither kept nor shown.
        """
        if self.is_local:
            return {}
        policy = read_policy()
        times = {
            "connect_timeout": _CONNECT_TIMEOUT,
            "timeout": f"{policy.stall_s * 1000:.0f}ms",
            "max_retries": str(_RETRIES_OF_A_LOOK),
            "retry_timeout": f"{policy.deadline_s * 250:.0f}ms",
        }
        if self.scheme != "s3":
            return times
        keys = find_keys()
        options = times if keys is None else times | keys.to_options()
        if _s3_endpoint().startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
        if "AWS_ENDPOINT_URL_S3" in os.environ:
            options["AWS_ENDPOINT_URL"] = _s3_endpoint()
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            options["AWS_REGION"] = (keys and keys.region) or "us-east-1"
        return options

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turns every error of the object-store library in the block into a StoreError that says what, and where."""
        fault = f"{what} in {self.uri}"
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise MissingObjectError(fault, expected="an object that exists", fix="check the address") from error
        except (AlreadyExistsError, FileExistsError) as error:
            raise ObjectExistsError(fault, expected="that nothing is there yet") from error
        except (BaseError, OSError, ValueError) as error:
            refusal = _find_refusal(error, self.is_local)
            if refusal is not None:
                raise ForbiddenError(fault, given=describe(error), expected="permission", fix=refusal) from shown(error)
            fix = (
                "check the address, the network and the free space" if self.is_local else "check the address and AWS_*"
            )
            raise StoreError(fault, given=describe(error), fix=fix) from shown(error)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Location({self.uri!r})"

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return Location, (self.uri,)

    def _try[T](self, what: str, attempt: Callable[[], T]) -> T:
        with self.telling(what):
            return keep_trying(attempt, what=f"{what} in {self.uri}")

    def _open(self, *, create: bool = False, to_write: bool = False) -> Any:
        """A client; that for writing tries again by itself, so that one part of a large object does not cost the rest.

        Args:
            create: Make the folder where there is none.
            to_write: For objects that are replaced whole, which may safely be written twice; makes the folder, too.
        """
        if to_write not in self._clients:
            if self.is_local and not (create or to_write) and not Path(self.path).is_dir():
                raise FileNotFoundError(self.path)
            self._clients[to_write] = self._connect(_RETRIES_OF_A_PART if to_write else 0)
        return self._clients[to_write]

    def _connect(self, num_retries: int) -> _Client:
        if self.is_local:
            return LocalStore(self.path, mkdir=True)
        policy, prefix = read_policy(), self.path or None
        retries: RetryConfig = {"max_retries": num_retries, "retry_timeout": timedelta(seconds=policy.deadline_s)}
        client: ClientConfig = {
            "connect_timeout": _CONNECT_TIMEOUT,
            "read_timeout": timedelta(seconds=policy.stall_s),
            "timeout": _WHOLE_TIMEOUT,
        }
        if self.scheme == "gs":
            return GCSStore(self.bucket, prefix=prefix, client_options=client, retry_config=retries)
        client["allow_http"] = _s3_endpoint().startswith("http://")
        keys = find_keys()
        has_own_region = keys is not None and keys.region and not os.environ.get("AWS_REGION")
        region: dict[str, Any] = {"region": keys.region} if keys and has_own_region else {}
        return S3Store(
            self.bucket,
            prefix=prefix,
            client_options=client,
            retry_config=retries,
            credential_provider=keys,
            **region,
        )


def check_length(data: Any, promised: tuple[int, int]) -> Any:
    """Gives back what a server sent when it is as long as the range that it said it would send.

    That range may be shorter than what was asked for, of an object that is too short, which is no fault of the network.

    Raises:
        ConnectionError: it ended early.
    """
    start, stop = promised
    if len(data) != stop - start:
        raise ConnectionError(f"the answer ended early: {len(data)} bytes of {stop - start}")
    return data


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


def _find_refusal(error: Exception, is_local: bool) -> str | None:
    if is_local:
        return "check whose the folder is" if isinstance(error, PermissionError | PermissionDeniedError) else None
    return find_refusal(error)


def _check_key(key: str) -> None:
    """Keys are made of plain parts, so that none can leave its location."""
    if all(_KEY_PART.match(part) for part in key.split("/")):
        return
    raise StoreError(
        "a key cannot be used", given=repr(key[:120]), expected="parts of letters, digits and _ . @ = + - joined by /"
    )


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
