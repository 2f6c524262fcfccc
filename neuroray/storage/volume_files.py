"""Which files hold a volume, told from their names; and what a file is instead, told from its first bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroray.storage.scan import ScanError

SINGLE_SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
_SURFACE_ENDINGS = (".gii", ".gii.gz")
_CIFTI_KINDS = ("scalar", "series", "tseries", "label", "conn")
_CIFTI_ENDINGS = tuple(
    f".{form}{kind}.nii{packed}"
    for form in ("d", "p", "dp", "pd", "sd")
    for kind in _CIFTI_KINDS
    for packed in ("", ".gz")
)
_FETCH_AGAIN = "download the file again, and look at what the address answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFiles:
    """The files of one volume: `voxels` is `header` itself, except for a pair."""

    header: Path
    voxels: Path

    @property
    def is_pair(self) -> bool:
        """True for .hdr and .img."""
        return self.header != self.voxels


def find_suffix(name: str) -> str | None:
    """The ending by which a file is known as a volume, `.nii.gz` whole, in lower case; None where it has none."""
    lower = name.lower()
    endings = sorted(SINGLE_SUFFIXES + PAIR_SUFFIXES, key=len, reverse=True)
    return next((ending for ending in endings if lower.endswith(ending)), None)


def is_surface_name(name: str) -> bool:
    """True for the names of GIFTI and CIFTI files, of which some end like a volume's."""
    return name.lower().endswith(_SURFACE_ENDINGS + _CIFTI_ENDINGS)


def find_volume_files(path: Path) -> VolumeFiles:
    """The file or the pair that `path` names; a pair by either of its files. Does not look whether they are there.

    Raises:
        ScanError: the name is not that of a volume.
    """
    if is_surface_name(path.name):
        raise ScanError(
            f"{path.name}: this is surface or CIFTI data, not a volume",
            expected=", ".join(SINGLE_SUFFIXES + PAIR_SUFFIXES[:2]),
            fix="give the volume it was made from",
        )
    suffix = find_suffix(path.name)
    if suffix is None:
        raise ScanError(
            f"{path.name}: the name does not end like that of a scan",
            expected=", ".join(SINGLE_SUFFIXES + PAIR_SUFFIXES[:2]),
            fix="convert it to NIfTI (DICOM series: with dcm2niix), or correct the name",
        )
    if suffix in SINGLE_SUFFIXES:
        return VolumeFiles(header=path, voxels=path)
    partner = path.with_name(path.name[: -len(suffix)] + _partner_suffix(path.name[-len(suffix) :]))
    return VolumeFiles(header=path, voxels=partner) if "hdr" in suffix else VolumeFiles(header=partner, voxels=path)


def refuse_foreign(start: bytes, name: str) -> ScanError:
    """The error for a file whose first bytes are no volume's header, saying what it is where that can be told."""
    what, fix = _recognise(start)
    return ScanError(
        f"{name}: this is not a NIfTI, Analyze or MGH file, but {what}",
        given=f"a file that begins with the bytes {start[:4].hex(' ')}",
        fix=fix,
    )


def _recognise(start: bytes) -> tuple[str, str]:
    text = start[:348].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (an error page saved under the scan's name)", _FETCH_AGAIN
    if b"<gifti" in text or text.startswith(b"<?xml"):
        return "XML (a GIFTI surface, or an error message of a server)", "give the volume itself, or " + _FETCH_AGAIN
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "fetch the content with `git lfs pull`"
    if text.startswith((b"/annex/objects", b"../.git/annex", b".git/annex")):
        return "a pointer of git-annex", "fetch the content with `datalad get` or `git annex get`"
    if start[128:132] == b"DICM":
        return "a DICOM file", "convert the series to NIfTI with dcm2niix"
    if text.startswith((b"{", b"[")):
        return "JSON", "give the scan that this file lies beside"
    if start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start[:348]):
        return "text", _FETCH_AGAIN
    return "something else", "the file is damaged or misnamed: export it again from where it came from"


def _partner_suffix(suffix: str) -> str:
    pairs = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR", "Hdr": "Img", "Img": "Hdr"}
    kind = suffix[1:4]
    return f".{pairs.get(kind, pairs[kind.lower()])}{suffix[4:]}"
