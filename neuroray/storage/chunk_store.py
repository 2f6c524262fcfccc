"""The Zarr store of a bucket: each request is tried again until a deadline, and what fails is told with its object."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import obstore
from obstore.exceptions import NotSupportedError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from neuroray.storage.locations import Location, check_length
from neuroray.storage.retries import keep_trying_async


class ChunkStore(ObjectStore[Any]):
    """Zarr's own store over obstore, with the retries and the errors of a `Location`.

    Args:
        client: The obstore client, rooted at the location.
        location: Where that is.
        read_only: Refuse to write.
    """

    def __init__(self, client: Any, location: Location, *, read_only: bool = False) -> None:
        super().__init__(client, read_only=read_only)
        self._location = location

    def with_read_only(self, read_only: bool = False) -> ChunkStore:
        """The same store, to read from alone or not."""
        return ChunkStore(self.store, self._location, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a part of it; None where there is none.

        Raises:
            UnreachableError: it could not be had until the deadline.
            StoreError: it may not be read.
        """
        what = f"cannot read {key}"
        with self._location.telling(what):
            try:
                data = await keep_trying_async(
                    lambda: _read(self.store, key, byte_range), what=f"{what} in {self._location.uri}"
                )
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several objects or parts at once, each as `get` gives it."""
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    async def set(self, key: str, value: Buffer) -> None:
        """Writes an object whole.

        Raises:
            StoreError: it cannot be written.
        """
        self._check_writable()
        what = f"cannot write {key}"
        with self._location.telling(what):
            await keep_trying_async(
                lambda: obstore.put_async(self.store, key, value.as_buffer_like()),
                what=f"{what} in {self._location.uri}",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # By its address: the client may hold credentials.
        return _reopen, (self._location, self.read_only)


def _reopen(location: Location, read_only: bool) -> Any:
    return location.zarr_store(read_only=read_only)


async def _read(client: Any, key: str, byte_range: ByteRequest | None) -> Any:
    options: Any = {}
    if isinstance(byte_range, RangeByteRequest):
        options = {"range": (byte_range.start, byte_range.end)}
    elif isinstance(byte_range, OffsetByteRequest):
        options = {"range": {"offset": byte_range.offset}}
    elif isinstance(byte_range, SuffixByteRequest):
        options = {"range": {"suffix": byte_range.suffix}}
    try:
        answer = await obstore.get_async(client, key, options=options)
    except NotSupportedError:
        # Some servers know no suffixes.
        assert isinstance(byte_range, SuffixByteRequest)
        size_bytes = (await obstore.head_async(client, key))["size"]
        return await _read(client, key, RangeByteRequest(max(0, size_bytes - byte_range.suffix), size_bytes))
    return check_length(await answer.bytes_async(), answer.range)
