"""DICOM series as volumes, through dcm2niix: found by folder, converted one at a time, and no person's name kept."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neuroray.storage.scan import ScanError

_SUFFIXES: Final = (".dcm", ".ima", ".dicom", "")
_MAGIC_OFFSET: Final = 128
MAGIC_BYTES: Final = _MAGIC_OFFSET + 4
"""What of a file tells whether it is DICOM."""
_TIMEOUT_S: Final = 1800
# Where NIfTI-1 keeps free text: data_type and db_name, descrip and aux_file, intent_name. dcm2niix writes comments and
# the time of day there.
_TEXT_FIELDS: Final = ((4, 32), (148, 252), (328, 344))
# Of the sidecar, what describes the scan; whatever might name somebody is left behind.
_KEPT_FIELDS: Final = (
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "InversionTime",
    "SliceTiming",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturersModelName",
    "Modality",
    "SeriesNumber",
    "ConversionSoftware",
    "ConversionSoftwareVersion",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomSeries:
    """A series in a folder: `number` is dcm2niix's own for it, and None where the folder is one series."""

    folder: Path
    number: str | None
    protocol: str


def find_dicom_folders(root: Path) -> list[Path]:
    """The folders below that hold DICOM files directly, sorted; one file of a kind is looked into per folder."""
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    return [folder for folder in folders if _holds_dicom(folder)]


def list_series(folder: Path) -> list[DicomSeries]:
    """The series in a folder, by their numbers; files are looked at, not converted.

    Raises:
        ScanError: dcm2niix is not installed, or finds nothing.
    """
    found = _run(["-n", "-1", "-g", "i", "-f", "%p", "-d", "0", str(folder)], folder.name)
    pairs = re.findall(r"^\t?(\d+)\t(.*)$", found, re.MULTILINE)
    if not pairs:
        raise ScanError(f"{folder.name}: no DICOM series was found", fix="the files are damaged or hold no images")
    return [
        DicomSeries(folder=folder, number=number if len(pairs) > 1 else None, protocol=Path(name).name)
        for number, name in pairs
    ]


def list_dicom_files(folder: Path) -> list[Path]:
    """All files directly in a folder of DICOM files, sorted, but for hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def convert_series(
    folder: Path, number: str | None, out: Path, name: str, *, max_bytes: int
) -> tuple[Path, dict[str, Any]]:
    """Converts one series into a .nii in `out`, its header without free text; gives it with the kept sidecar fields.

    Args:
        folder: Holds the files of the series directly.
        number: The series, where there are several; None for the only one.
        out: An empty folder.
        name: What the series is called in errors.
        max_bytes: Folders with more bytes than this are refused before they are converted.

    Raises:
        ScanError: dcm2niix is not installed or fails, or the series makes no image or more than one.
    """
    size_bytes = sum(path.stat().st_size for path in list_dicom_files(folder))
    if number is None and size_bytes > 2 * max_bytes:
        raise ScanError(
            f"{name}: the series is too large", given=f"{size_bytes} bytes", expected=f"at most {2 * max_bytes}"
        )
    chosen = [] if number is None else ["-n", number]
    _run(
        [*chosen, "-g", "i", "-z", "n", "-b", "y", "-ba", "y", "-f", "scan", "-d", "0", "-o", str(out), str(folder)],
        name,
    )
    volumes = sorted(out.glob("*.nii"))
    if len(volumes) != 1:
        raise ScanError(
            f"{name}: the series makes {len(volumes)} images, not one",
            expected="one image: one contrast, one echo, one orientation",
            fix="give each folder one series; convert echoes and phases with dcm2niix, and ingest what you need",
        )
    _clear_text(volumes[0])
    return volumes[0], _read_sidecar(volumes[0].with_suffix(".json"))


def converter_version() -> str:
    """The version of dcm2niix; "" where it is not installed."""
    try:
        import dcm2niix
    except ImportError:
        return ""
    return str(dcm2niix.__version__)


def _holds_dicom(folder: Path) -> bool:
    return any(_is_dicom(path) for path in find_candidates(folder))


def find_candidates(folder: Path) -> Iterator[Path]:
    """One file of each ending; DICOM files often have none, or a number in its place."""
    seen = set()
    for path in list_dicom_files(folder):
        suffix = path.suffix.lower()
        kind = "" if suffix[1:].isdecimal() else suffix
        if kind in _SUFFIXES and kind not in seen:
            seen.add(kind)
            yield path


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_BYTES)[_MAGIC_OFFSET:] == b"DICM"
    except OSError:
        return False


def _run(arguments: list[str], name: str) -> str:
    """What dcm2niix prints, which may name people: it is looked at here, and goes nowhere."""
    try:
        import dcm2niix
    except ImportError as error:
        raise ScanError(
            f"{name}: DICOM files need dcm2niix, which is not installed", fix="pip install 'neuroray[dicom]'"
        ) from error
    try:
        done = subprocess.run(
            [dcm2niix.bin, *arguments], capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScanError(f"{name}: dcm2niix did not finish", given=type(error).__name__) from error
    listing = "-1" in arguments
    if done.returncode != 0 and not listing:
        raise ScanError(
            f"{name}: dcm2niix cannot convert the series",
            given=f"exit code {done.returncode}",
            fix="run dcm2niix on the folder to see why: slices may be missing, or the files hold no image",
        )
    return done.stdout.decode(errors="replace")


def _clear_text(volume: Path) -> None:
    with volume.open("r+b") as file:
        for start, stop in _TEXT_FIELDS:
            file.seek(start)
            file.write(bytes(stop - start))


def _read_sidecar(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in _KEPT_FIELDS if name in content}
    return {}
