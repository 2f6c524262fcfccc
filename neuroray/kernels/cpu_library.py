"""A kernel in C++ as an operation sees it: opened on first use, or with a reason why not; called with one struct."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from neuroray.kernels.errors import KernelError
from neuroray.kernels.extension import FLAGS, open_library

logger = logging.getLogger("neuroray.kernels")

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types that the C++ reads and writes, by the number that it knows them by (`scan_vector.h`)."""

LANES = 16
"""Channels that the C++ takes at a time."""


class Rows(ctypes.Structure):
    """`Rows` of `scan_memory.h`: where a `batch token channel` tensor lies, channels next to each other."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("batch_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )


def point_rows(tensor: Tensor | None) -> Rows:
    """The address of a tensor, which must outlive the call; of none, an empty one."""
    if tensor is None:
        return Rows()
    return Rows(tensor.data_ptr(), KINDS[tensor.dtype], tensor.stride(0), tensor.stride(1))


class CpuLibrary:
    """The library of one operation.

    Args:
        operation: Its name.
        sources: C++ files, as `open_library` takes them.
        functions: What is called in it; each takes the struct's address and gives 0, or 1 for lack of memory.
        call_bytes: The function that gives the struct's size as C++ sees it.
        call: The struct.
        flags: Of the compiler.
    """

    def __init__(
        self,
        operation: str,
        sources: Sequence[Path],
        *,
        functions: Sequence[str],
        call_bytes: str,
        call: type[ctypes.Structure],
        flags: Sequence[str] = FLAGS,
    ) -> None:
        self.operation, self.sources, self.flags = operation, tuple(sources), tuple(flags)
        self.functions, self.call_bytes, self.call_type = tuple(functions), call_bytes, call
        self._opened: ctypes.CDLL | KernelError | None = None
        self._opening = threading.Lock()

    def afresh(self, *, flags: Sequence[str] | None = None) -> CpuLibrary:
        """The same, not opened yet; with other flags if they are given."""
        return CpuLibrary(
            self.operation,
            self.sources,
            functions=self.functions,
            call_bytes=self.call_bytes,
            call=self.call_type,
            flags=self.flags if flags is None else flags,
        )

    def open(self) -> ctypes.CDLL | KernelError:
        """The library, or why there is none: told in the log, and so once."""
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def find_obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this cannot run; the first time it may build the library, which takes some seconds."""
        if device.type != "cpu":
            return f"it runs on CPUs only, not on {device}"
        if dtype != torch.float32:
            return f"it computes in float32, not {dtype}"
        library = self.open()
        return str(library) if isinstance(library, KernelError) else None

    def call(self, function: str, call: ctypes.Structure) -> None:
        """Calls one of the functions.

        Raises:
            KernelError: there is no library.
            MemoryError: it found no memory.
        """
        library = self.open()
        if isinstance(library, KernelError):
            raise KernelError(f"{self.operation} cannot run in C++ here", given=library)
        if getattr(library, function)(ctypes.byref(call)):
            raise MemoryError(f"{self.operation} has no memory for its state")

    def _open(self) -> ctypes.CDLL | KernelError:
        try:
            library = open_library(self.operation, self.sources, flags=self.flags)
        except KernelError as error:
            logger.warning("%s cannot run in C++ here, impl='auto' takes 'torch': %s", self.operation, error)
            return error
        for name in (*self.functions, self.call_bytes):
            getattr(library, name).restype = ctypes.c_int64
        assert getattr(library, self.call_bytes)() == ctypes.sizeof(self.call_type)
        return library
