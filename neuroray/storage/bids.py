"""The scans of a BIDS folder, of any other folder, of a glob or of one file, with what their names and sidecars say."""

from __future__ import annotations

import collections
import dataclasses
import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroray.storage.participants import Participant, ParticipantTable, TableError, check_subject_id, read_participants
from neuroray.storage.scan import ScanError
from neuroray.storage.scan_names import modality_of, name_stem, safe_part, subject_of
from neuroray.storage.sidecars import SidecarIndex, parse_bids_name
from neuroray.storage.volume_files import find_suffix, find_volume_files
from neuroray.storage.volume_reading import read_header

__all__ = [
    "Participant",
    "ParticipantTable",
    "ScanFile",
    "TableError",
    "check_subject_id",
    "find_scans",
    "read_participants",
]

_FIELD_MAPS = "fmap"
_DATATYPES = ("anat", "func", "dwi", "perf", "pet", _FIELD_MAPS)
_SKIPPED_FOLDERS = ("derivatives", "sourcedata", "code", "stimuli")
_DATATYPE_OF = {"bold": "func", "sbref": "func", "dwi": "dwi", "asl": "perf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    """An object of a bucket: `key` below the location `prefix` (an address), and its size when it was listed."""

    prefix: str
    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFile:
    """One scan on disk or in a bucket, not read yet.

    Attributes:
        path: The file; of a pair, the .hdr; of a DICOM series, its folder. Of a scan in a bucket only the name counts.
        scan_id: A name that no other scan of the same listing has, safe as part of a path.
        subject: The person, without BIDS's `sub-`; for free names, the name without what says the modality.
        session: The visit, without `ses-`.
        datatype: BIDS's folder: "anat", "func", ...
        suffix: What kind of image: "T1w", "bold", ...
        entities: All `key-value` parts of a BIDS name ("task": "rest"); empty for free names.
        sidecar: JSON that applies to the scan, with what BIDS lets it inherit.
        notices: What a person should know of the name and the sidecars.
        is_suffix_known: False where neither the name nor the header told the kind of image.
        objects: The objects to fetch, for a scan in a bucket.
        is_dicom: Whether this is a series of DICOM files.
        series: Which one, where its folder holds several.
    """

    path: Path
    scan_id: str
    subject: str
    session: str | None = None
    datatype: str
    suffix: str
    entities: dict[str, str] = field(default_factory=dict)
    sidecar: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    is_suffix_known: bool = True
    objects: tuple[RemoteObject, ...] = ()
    is_dicom: bool = False
    series: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.name


def find_scans(root: str | Path, *, modality: str | None = None, field_maps: bool = False) -> list[ScanFile]:
    """Lists scans, sorted by path, without reading their voxels.

    A folder with `dataset_description.json` or `sub-*` folders is BIDS: scans are looked for in `sub-*` only. Any other
    folder is searched to its depth. Hidden files, `derivatives`, `sourcedata`, `code` and (unless asked for) `fmap` are
    left out of folders; an .hdr with its .img counts once. Files are not judged here: one that is damaged is listed,
    and refused by `read_scan`.

    Free names give a subject (`IXI012-HH-1211-T1_ds.nii.gz`: IXI012-HH-1211) and a kind: by a word in the name, else
    "bold" for more than one frame, else "T1w". Where one name occurs in several folders, the folders tell subjects
    apart.

    Args:
        root: A BIDS folder, a folder, a glob (`**` goes through folders), or one file.
        modality: The suffix of scans with free names.
        field_maps: Whether `fmap` is listed too.

    Raises:
        ScanError: nothing is there, or nothing that could be a scan.
    """
    skipped = _SKIPPED_FOLDERS if field_maps else (*_SKIPPED_FOLDERS, _FIELD_MAPS)
    base, candidates = _find_candidates(str(root), skipped)
    paths = sorted(_without_pair_doubles(candidates))
    if not paths:
        raise ScanError(
            f"{Path(root).name}: no scans found",
            expected="files that end in .nii, .nii.gz, .mgh, .mgz or .hdr with .img",
            fix="check the path; in a BIDS folder scans lie in sub-*/anat or sub-*/func",
        )
    sidecars = SidecarIndex()
    free_ids = _tell_apart([path for path in paths if parse_bids_name(name_stem(path.name)) is None], base)
    files = [_describe(path, sidecars, free_ids, modality) for path in paths]
    return _with_unique_ids(files)


def _find_candidates(root: str, skipped: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all volumes in question."""
    path = Path(root)
    if path.is_dir():
        people = sorted(folder for folder in path.glob("sub-*") if folder.is_dir())
        is_bids = bool(people) or (path / "dataset_description.json").exists()
        seen: set[Path] = set()
        return path, [file for folder in (people if is_bids else [path]) for file in _walk(folder, skipped, seen)]
    if path.exists() or path.is_symlink():
        return path.parent, [path]
    if glob.has_magic(root):
        found = [Path(match) for match in glob.glob(root, recursive=True)]  # noqa: PTH207  # takes absolute patterns
        return _common_folder(found), [match for match in found if match.is_file() and find_suffix(match.name)]
    raise ScanError(f"{path.name}: there is no such file or folder", fix="check the path")


def _walk(folder: Path, skipped: tuple[str, ...], seen: set[Path]) -> Iterator[Path]:
    """Volumes in a folder and below; links are followed, each folder once."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.name not in skipped:
                yield from _walk(path, skipped, seen)
        elif find_suffix(path.name):
            yield path


def _common_folder(paths: list[Path]) -> Path:
    folders = [path.parent for path in paths]
    while len(set(folders)) > 1:
        deepest = max(len(folder.parts) for folder in folders)
        folders = [folder.parent if len(folder.parts) == deepest else folder for folder in folders]
    return folders[0] if folders else Path()


def _without_pair_doubles(paths: Iterable[Path]) -> list[Path]:
    """Each pair once, by its .hdr; where that is missing by its .img, for `read_scan` to say so."""
    once = {}
    for path in paths:
        is_voxels = find_suffix(path.name) in (".img", ".img.gz")
        header = find_volume_files(path).header if is_voxels else path
        once[header] = header if header.exists() else path
    return list(once.values())


def _describe(path: Path, sidecars: SidecarIndex, free_ids: dict[Path, str], modality: str | None) -> ScanFile:
    parsed = parse_bids_name(name_stem(path.name))
    if parsed is None:
        return _describe_free(path, free_ids[path], modality)
    sidecar, notices = sidecars.find(path, parsed)
    folder = path.parent.name
    person = _find_person(path)
    if person not in (None, f"sub-{parsed.entities['sub']}"):
        notices += (f"{path.name} lies in the folder of another person",)
    return ScanFile(
        path=path,
        scan_id=name_stem(path.name),
        subject=parsed.entities["sub"],
        session=parsed.entities.get("ses"),
        datatype=folder if folder in _DATATYPES else _DATATYPE_OF.get(parsed.suffix, "anat"),
        suffix=parsed.suffix,
        entities=dict(parsed.entities),
        sidecar=sidecar,
        notices=notices,
    )


def _describe_free(path: Path, scan_id: str, modality: str | None) -> ScanFile:
    suffix = modality or _tell_modality(path)
    folder = path.parent.name
    person = _find_person(path)
    subject = safe_part(person.removeprefix("sub-")) if person else subject_of(scan_id)
    return ScanFile(
        path=path,
        scan_id=scan_id,
        subject=subject,
        datatype=folder if folder in _DATATYPES else _DATATYPE_OF.get(suffix or "", "anat"),
        suffix=suffix or "T1w",
        is_suffix_known=suffix is not None,
    )


def _find_person(path: Path) -> str | None:
    """The BIDS folder of a person that the file lies in: the visit and the kind of data may lie between."""
    return next((part for part in reversed(path.parent.parts[-3:]) if part.startswith("sub-")), None)


def _tell_modality(path: Path) -> str | None:
    if path.parent.name == _FIELD_MAPS:
        return "fieldmap"
    named = modality_of(name_stem(path.name))
    if named is not None:
        return named
    try:
        num_frames = read_header(find_volume_files(path)).num_frames
    except ScanError:
        return None  # whatever it is called, reading it will give the reason why it is not taken
    return "bold" if num_frames > 1 else "T1w"


def _tell_apart(paths: list[Path], base: Path) -> dict[Path, str]:
    """An id for each free name: the name alone where it occurs once, else with the folders it lies in."""
    counts = collections.Counter(name_stem(path.name) for path in paths)
    ids = {}
    for path in paths:
        folders = path.relative_to(base).parts[:-1]
        parts = (name_stem(path.name),) if counts[name_stem(path.name)] == 1 else (*folders, name_stem(path.name))
        ids[path] = safe_part("_".join(parts))
    return ids


def _with_unique_ids(files: list[ScanFile]) -> list[ScanFile]:
    taken: set[str] = set()
    unique = []
    for file in files:
        numbered = (f"{file.scan_id}-{number}" for number in itertools.count(2))
        scan_id = next(name for name in itertools.chain([file.scan_id], numbered) if name not in taken)
        taken.add(scan_id)
        unique.append(dataclasses.replace(file, scan_id=scan_id))
    return unique
