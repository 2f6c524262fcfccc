"""A file's bytes, unpacked where compressed: read forward only, never past a bound; written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self, cast

from isal import igzip, isal_zlib

from neuroray.storage.scan import ScanError

_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_CONTAINERS = {b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstandard", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz"}
# Deflate (RFC 1951) spends at least two bits on 258 bytes: no gzip file unpacks to more than 1032 times its size.
_MAX_DEFLATE_RATIO = 1032
_COMPRESSION_LEVEL = 6
_PIECE_BYTES = 2**16
_DAMAGED: type[Exception] = cast(Any, isal_zlib).error  # its stub calls the class an instance


class ByteStream:
    """The unpacked bytes of one file, from its start to its end.

    Whether the file is compressed is told from its content; `is_compressed` says so. Every fault of the container (cut
    short, damaged in the middle, wrong checksum) becomes a `ScanError` that names the file.
    """

    def __init__(self, path: Path) -> None:
        _check_is_there(path)
        self.name = path.name
        self.file_size_bytes = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(6)
        self._check_container(magic)
        self.is_compressed = magic.startswith(_GZIP_MAGIC)
        # ISA-L unpacks some 2.5 times as fast as zlib, with the same checks and the same errors.
        self._file: io.BufferedIOBase = igzip.IGzipFile(path, "rb") if self.is_compressed else path.open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def largest_size_bytes(self) -> int:
        """The most that this file can unpack to, whatever its header claims."""
        return self.file_size_bytes * (_MAX_DEFLATE_RATIO if self.is_compressed else 1)

    def read(self, size_bytes: int) -> bytes:
        """The next bytes; fewer only where the file ends."""
        with self._container_faults():
            return self._file.read(size_bytes)

    def read_exactly(self, size_bytes: int, what: str) -> bytes:
        """The next bytes, all of them.

        Raises:
            ScanError: the file ends within them, or is damaged.
        """
        content = self.read(size_bytes)
        if len(content) < size_bytes:
            raise self._too_short(what)
        return content

    def read_into(self, buffer: memoryview, what: str) -> None:
        """Fills `buffer` with the next bytes.

        Raises:
            ScanError: the file ends within them, or is damaged.
        """
        filled = 0
        while filled < len(buffer):
            with self._container_faults():
                count = self._file.readinto(buffer[filled:])
            if not count:
                raise self._too_short(what)
            filled += count

    def read_rest(self, max_bytes: int) -> bytes:
        """Whatever follows, up to the end, where gzip's checksum is compared.

        Raises:
            ScanError: more than `max_bytes` follow, or the checksum is wrong.
        """
        pieces, size_bytes = [], 0
        while piece := self.read(_PIECE_BYTES):
            pieces.append(piece)
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise ScanError(
                    f"{self.name}: the file goes on long after the image that its header describes",
                    given=f"more than {max_bytes} further bytes",
                    expected="an end soon after the last voxel",
                    fix="the header's shape or data type is wrong, or the file is hostile: fetch or convert it again",
                )
        return b"".join(pieces)

    def _too_short(self, what: str) -> ScanError:
        return ScanError(
            f"{self.name}: the file ends within {what}",
            given=f"a file of {self.file_size_bytes} bytes",
            expected="all that its header announces",
            fix="the file was cut short: copy or download it again",
        )

    def _check_container(self, magic: bytes) -> None:
        if not magic:
            raise ScanError(f"{self.name}: the file is empty", given="0 bytes", fix="copy or download it again")
        for start, container in _OTHER_CONTAINERS.items():
            if magic.startswith(start):
                raise ScanError(
                    f"{self.name}: the file is packed with {container}",
                    expected="gzip, or no compression",
                    fix="unpack it and give the file inside",
                )

    @contextlib.contextmanager
    def _container_faults(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            raise ScanError(
                f"{self.name}: the compressed data are cut short",
                given=f"a gzip stream that does not end within the file's {self.file_size_bytes} bytes",
                fix="copy or download the file again",
            ) from error
        except (_DAMAGED, gzip.BadGzipFile) as error:
            raise ScanError(
                f"{self.name}: the compressed data are damaged",
                given=str(error),
                expected="a gzip stream with the right checksum",
                fix="copy or download the file again",
            ) from error
        except OSError as error:
            raise ScanError(f"{self.name}: the file cannot be read", given=error.strerror or str(error)) from error


@contextlib.contextmanager
def write_whole(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file that appears under `path` when the block ends well, and not at all when it does not.

    A name that ends in .gz or .mgz is compressed, without time stamp or name inside, so that equal content gives equal
    bytes.

    Raises:
        ScanError: `path` exists and `overwrite` is False, or its folder does not exist.
    """
    check_may_write(path, overwrite=overwrite)
    hidden = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        with hidden.open("xb") as file:
            with _packed(file, path) as packed:
                yield packed
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def check_may_write(path: Path, *, overwrite: bool) -> None:
    """Says no before any work is done.

    Raises:
        ScanError: `path` exists and `overwrite` is False, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise ScanError(f"{path.name}: the folder to write into does not exist", fix="create the folder first")
    if path.exists() and not overwrite:
        raise ScanError(
            f"{path.name}: there is a file of that name already", fix="choose another name, or pass overwrite=True"
        )


def _packed(file: IO[bytes], path: Path) -> contextlib.AbstractContextManager[Any]:
    if path.suffix.lower() not in (".gz", ".mgz"):
        return contextlib.nullcontext(file)
    return gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION_LEVEL, fileobj=file, mtime=0)


def _check_is_there(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ScanError(
            f"{path.name}: the link points to a file that is not there",
            fix="fetch the content first (`datalad get` or `git annex get` where the data set is one of theirs)",
        )
    if not path.exists():
        raise ScanError(f"{path.name}: there is no such file", fix="check the path")
    if not path.is_file():
        raise ScanError(f"{path.name}: this is not a file", expected="a file that holds one scan")
