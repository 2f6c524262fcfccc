"""C++ kernels are built once, whole or not at all, whoever asks for them at the same time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from neuroray.kernels import KernelError, extension

ADDS = """
#include "constant.h"
extern "C" int add(int a, int b) { return a + b + CONSTANT; }
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which libraries are kept, empty."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "neuroray"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    files = {"add.cpp": ADDS, "constant.h": "#define CONSTANT 0"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in files]


def count_compiler_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a line for each build, by a compiler that takes its time."""
    log = tmp_path / "builds"
    log.touch()
    compiler = tmp_path / "slow-compiler"
    real = extension.find_compiler()[0]
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *add.cpp*) echo built >> "{log}"; sleep 0.5;; esac\nexec "{real}" "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return log


def test_a_library_is_built_once_and_found_again(
    sources: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = count_compiler_runs(tmp_path, monkeypatch)
    assert extension.open_library("add", sources).add(2, 3) == 5
    assert extension.open_library("add", sources).add(2, 4) == 6
    assert log.read_text() == "built\n"
    assert len(list(cache.glob("*.so"))) == 1


def test_a_changed_source_header_flag_or_compiler_is_another_library(
    sources: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension.open_library("add", sources)
    sources[1].write_text("#define CONSTANT 10")
    assert extension.open_library("add", sources).add(2, 3) == 15
    extension.open_library("add", sources, flags=(*extension.FLAGS, "-DUNUSED"))
    count_compiler_runs(tmp_path, monkeypatch)
    extension.open_library("add", sources)
    assert len(list(cache.glob("*.so"))) == 4


def test_processes_that_start_together_build_once_and_all_get_a_whole_library(
    sources: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = count_compiler_runs(tmp_path, monkeypatch)
    # Processes that do not import torch start in no time, and so nearly at once: its place is taken by a stand-in.
    script = textwrap.dedent(
        """
        import importlib.util, sys, types
        from pathlib import Path
        sys.modules["torch"] = types.SimpleNamespace(__version__="0")
        for name in ("neuroray", "neuroray.kernels"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(Path(sys.argv[1], *name.split(".")[1:]))]
        from neuroray.kernels import extension
        assert extension.open_library("add", [Path(name) for name in sys.argv[2:]]).add(2, 3) == 5
        """
    )
    package = Path(extension.__file__).parents[1]
    command = [sys.executable, "-c", script, str(package), *map(str, sources)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        assert process.wait(60) == 0, process.communicate()[1]
    assert log.read_text() == "built\n"
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".so"], "nothing unfinished is left"


def test_a_build_that_was_killed_leaves_nothing_in_the_way(
    sources: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension.open_library("add", sources)
    library = next(cache.glob("*.so"))
    library.unlink()
    # What a killed process leaves: its lock file, held by nobody, and half a library under another name.
    unfinished = cache / f"{library.stem}-killed" / library.name
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"\x7fELF")
    assert extension.open_library("add", sources).add(1, 1) == 2
    assert library.exists()


def test_without_a_compiler_it_says_what_it_looked_for(sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++ -v")
    with pytest.raises(KernelError, match=r"no C\+\+ compiler.*CXX=/nowhere/g\+\+ -v.*install"):
        extension.open_library("add", sources)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match=r"looked for c\+\+, g\+\+, clang\+\+"):
        extension.open_library("add", sources)


def test_a_failed_build_ends_with_the_compilers_last_lines(sources: list[Path], cache: Path) -> None:
    sources[0].write_text("int add( {")
    with pytest.raises(KernelError, match=r"compiler failed.*exit status 1") as failure:
        extension.open_library("add", sources)
    assert "add.cpp:1" in str(failure.value)
    assert not list(cache.glob("*.so"))


def test_a_cache_that_cannot_be_written_is_named(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(KernelError, match=r"cannot be stored.*file.*TORCH_EXTENSIONS_DIR"):
        extension.open_library("add", sources)


def test_a_library_that_does_not_open_is_named(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    # The output is the last argument; where the compiler is only asked what it defines, that is the null device.
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho junk > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(KernelError, match=r"cannot be opened.*delete .*add-[0-9a-f]+\.so"):
        extension.open_library("add", sources)
