"""Builds a C++ kernel once per machine, user and compiler, and opens it.

A kernel here is a plain shared library called through ctypes with addresses of tensors, not a module made by
`torch.utils.cpp_extension.load`, for three reasons. Torch's headers cost half a minute of compiling, the kernel itself
three seconds; a library without them works with every torch. Torch's loader guards a build with a file that stays when
its process is killed, and every later process then waits for it without end; a lock of the operating system ends with
its process. And torch's loader does not look at the processor, so that in a home folder shared by several machines
`-march=native` would be used where it does not run.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from neuroray.kernels.errors import KernelError

logger = logging.getLogger("neuroray.kernels")

# No -ffast-math: NaN and infinity must come out as they went in.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_LIMIT_S = 600
_LINES_SHOWN = 12


def open_library(name: str, sources: Sequence[Path], *, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """The library of these sources, built first if this user has not built it yet with this compiler and processor.

    Any number of processes may call it at the same time: one builds, the others wait, and none sees a library before
    it is whole.

    Args:
        name: Of the library, as part of its file's name.
        sources: C++ files; those not ending in `.cpp` are read by the others.
        flags: Of the compiler.

    Raises:
        KernelError: no compiler, a failed build (with the compiler's last lines), or a cache that cannot be written.
    """
    command = [*find_compiler(), *flags]
    key = _make_key(command, sources)
    try:
        folder = _make_cache_folder()
        library = folder / f"{name}-{key}.so"
        if not library.exists():
            with _lock(folder / f"{name}-{key}.lock"):
                if not library.exists():
                    _build(command, sources, library)
    except OSError as error:
        fix = "set TORCH_EXTENSIONS_DIR to a folder that can be written"
        raise KernelError(f"the C++ kernel {name} cannot be stored", given=error, fix=fix) from error
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelError(f"the C++ kernel {name} cannot be opened", given=error, fix=f"delete {library}") from error


def find_compiler() -> list[str]:
    """The C++ compiler's command: the variable CXX, or the first of the usual names.

    Raises:
        KernelError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in _COMPILERS]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    looked_for = f"CXX={shlex.join(named)}" if named else ", ".join(_COMPILERS)
    raise KernelError("there is no C++ compiler", given=f"looked for {looked_for}", fix="install g++, or set CXX")


def _make_cache_folder() -> Path:
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root:
        folder = Path(root) / "neuroray"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
        folder = Path(cache) / "neuroray" / "extensions"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_key(command: Sequence[str], sources: Sequence[Path]) -> str:
    """What the library depends on, in 16 letters."""
    # What the compiler defines under these flags tells its version and, with -march=native, what the processor has.
    macros = _run([*command, "-E", "-dM", "-x", "c++", os.devnull]).stdout
    parts = [torch.__version__, shlex.join(command), macros]
    parts += [f"{source.name}\n{source.read_text()}" for source in sources]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(command: Sequence[str], sources: Sequence[Path], library: Path) -> None:
    logger.info("building %s with %s", library, command[0])
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=f"{library.stem}-") as folder:
        unfinished = Path(folder) / library.name
        units = [str(source) for source in sources if source.suffix == ".cpp"]
        _run([*command, *units, "-o", str(unfinished)])
        # A rename is all or nothing, also for processes on other machines that no lock reaches.
        unfinished.replace(library)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Messages in English whatever the user's language, as they end in ours.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_BUILD_LIMIT_S, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError("the C++ compiler cannot be run", given=error) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-_LINES_SHOWN:]
        given = "\n".join([f"exit status {done.returncode} of {shlex.join(command)}", *lines])
        raise KernelError("the C++ compiler failed", given=given)
    return done


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a file's lock; it ends with the process, however that ends."""
    import fcntl  # Not on Windows, where there is no such build either.

    with path.open("w") as file:
        # Some network file systems know no locks: then several may build, and the last rename wins.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
