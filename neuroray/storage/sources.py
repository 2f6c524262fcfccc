"""What an ingest is given, as labelled scans: a BIDS dataset, a folder, a glob, a file, DICOM, here or in a bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neuroray.storage.bids import ScanFile, find_scans
from neuroray.storage.bucket_shadow import BucketShadow, is_bucket, shadow_bucket
from neuroray.storage.dicom import DicomSeries, find_dicom_folders, list_dicom_files, list_series
from neuroray.storage.label_matching import LabelledScan, match_labels
from neuroray.storage.locations import Location
from neuroray.storage.participant_row import COLUMNS
from neuroray.storage.participants import ParticipantTable, TableError, read_participants
from neuroray.storage.scan import ScanError
from neuroray.storage.scan_names import modality_of, safe_part
from neuroray.storage.table_file import read_text_table
from neuroray.storage.volume_files import find_volume_files

NO_TABLE: Final = "none"
"""Given in place of a table: scans are taken without labels, whatever lies beside them."""

# Of a derivatives dataset, what is no scan: where things are, and references to align to.
_NO_SCANS: Final = frozenset({"mask", "dseg", "probseg", "boldref", "xfm", "coeffmap", "stat", "weights"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceListing:
    """The scans of a source.

    Attributes:
        scans: Each with its labels, sorted as `find_scans` does.
        notices: What a person should know of the source and the labels; nobody is named.
        has_table: Whether there was a table of people.
    """

    scans: tuple[LabelledScan, ...]
    notices: tuple[str, ...]
    has_table: bool


def list_source(
    source: str, *, participants: str | None = None, modality: str | None = None, only: str | None = None
) -> SourceListing:
    """Lists a source without reading voxels.

    Labels come from `participants`; else from the dataset's `participants.tsv` (with `*_sessions.tsv`), for derivatives
    without one from that of the raw dataset around them; else from the one table beside the scans.

    Args:
        source: A BIDS dataset (raw or derivatives), a folder, a glob, one file; local, s3:// or gs://.
        participants: A table, or `NO_TABLE`.
        modality: What scans with free names are called.
        only: Takes only files with such a name (`*desc-preproc_bold*`).

    Raises:
        ScanError: nothing is there, or nothing that could be a scan.
        TableError: the table cannot be taken, or a named one knows nobody of the scans.
        StoreError: a bucket cannot be read.
    """
    with contextlib.ExitStack() as stack:
        shadow = stack.enter_context(shadow_bucket(source)) if is_bucket(source) else None
        root = shadow.source if shadow else source
        table, notices = _find_table(root, participants)
        files, left_out = _find_files(root, modality=modality, only=only, is_local=shadow is None)
        if shadow:
            files = [_with_objects(file, shadow) for file in files]
            notices += shadow.notices
    notices += left_out
    if table is None:
        scans = [LabelledScan(file=file, participant=None) for file in files]
        return SourceListing(scans=tuple(scans), notices=tuple(notices), has_table=False)
    scans, told = match_labels(files, table)
    if participants is not None and not any(scan.participant for scan in scans):
        raise TableError(
            f"{Path(participants).name}: the table knows none of the people with scans",
            given=f"{len(table)} rows, {len(files)} scans",
            expected="the ids that stand in the names of the scans, or a column with the names of their files",
            fix=f"correct the ids, or give --participants {NO_TABLE} to store the scans without labels",
        )
    return SourceListing(scans=tuple(scans), notices=(*notices, *told, *table.notices), has_table=True)


def _find_files(
    root: str, *, modality: str | None, only: str | None, is_local: bool
) -> tuple[list[ScanFile], list[str]]:
    series = list(_find_series(Path(root), modality, is_local=is_local))
    try:
        files = find_scans(root, modality=modality)
    except ScanError:
        if not series:
            raise
        files = []
    notices = []
    if _is_derivative(Path(root)):
        kept = [file for file in files if file.suffix not in _NO_SCANS]
        if len(kept) < len(files):
            notices.append(f"{len(files) - len(kept)} masks, segmentations and references were left out")
        files = kept
    files = [*files, *series]
    if only is not None:
        files = [file for file in files if fnmatch.fnmatchcase(file.name, only)]
    if not files:
        raise ScanError(
            f"{Path(root).name}: no scans are left",
            given=f"--only {only}" if only else "masks, segmentations and references alone",
            fix="check the pattern" if only else "give the dataset that holds the scans",
        )
    return files, notices


def _find_series(root: Path, modality: str | None, *, is_local: bool) -> Iterator[ScanFile]:
    """DICOM series in a folder that is no BIDS dataset; in a bucket, a folder is one series."""
    if not root.is_dir() or _is_bids(root):
        return
    for folder in find_dicom_folders(root):
        found = list_series(folder) if is_local else [DicomSeries(folder=folder, number=None, protocol="")]
        yield from (_describe_series(root, series, modality) for series in found)


def _describe_series(root: Path, series: DicomSeries, modality: str | None) -> ScanFile:
    """Names come from folders, for those inside DICOM files may be people's."""
    parts = series.folder.relative_to(root).parts or (root.resolve().name,)
    person = next((part for part in parts if part.startswith("sub-")), parts[0])
    visit = next((part for part in parts if part.startswith("ses-")), None)
    number = () if series.number is None else (f"s{series.number}",)
    suffix = modality or modality_of(f"{series.protocol} {series.folder.name}")
    return ScanFile(
        path=series.folder,
        scan_id=safe_part("_".join((*parts, *number))),
        subject=safe_part(person.removeprefix("sub-")),
        session=None if visit is None else safe_part(visit.removeprefix("ses-")),
        datatype="func" if suffix == "bold" else "anat",
        suffix=suffix or "T1w",
        is_suffix_known=suffix is not None,
        is_dicom=True,
        series=series.number,
    )


def _with_objects(file: ScanFile, shadow: BucketShadow) -> ScanFile:
    if file.is_dicom:
        return dataclasses.replace(file, objects=shadow.find(list_dicom_files(file.path)))
    files = find_volume_files(file.path)
    beside = file.path.with_name(f"{file.path.name.split('.hdr')[0]}.mat")  # of SPM's Analyze: read_scan asks for it
    paths = [files.header, files.voxels, beside] if files.is_pair else [files.header]
    return dataclasses.replace(file, objects=shadow.find(paths))


def _is_bids(root: Path) -> bool:
    return (root / "dataset_description.json").is_file() or any(path.is_dir() for path in root.glob("sub-*"))


def _is_derivative(root: Path) -> bool:
    description = root / "dataset_description.json"
    if not description.is_file():
        return root.parent.name == "derivatives"
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(description.read_text(encoding="utf-8-sig"))
        return content.get("DatasetType") == "derivative" or "PipelineDescription" in content
    return False


def _find_table(root: str, participants: str | None) -> tuple[ParticipantTable | None, list[str]]:
    if participants == NO_TABLE:
        return None, []
    if participants is not None:
        return (_read_remote(participants) if is_bucket(participants) else read_participants(participants)), []
    folder = Path(root)
    if (folder / "participants.tsv").is_file():
        return read_participants(folder), []
    raw = folder.resolve().parent.parent
    if (
        _is_derivative(folder)
        and folder.resolve().parent.name == "derivatives"
        and (raw / "participants.tsv").is_file()
    ):
        return read_participants(raw), ["labels come from participants.tsv of the raw dataset around the derivatives"]
    return _find_table_beside(folder if folder.is_dir() else folder.parent)


def _read_remote(uri: str) -> ParticipantTable:
    prefix, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="neuroray-table-") as folder:
        (Path(folder) / name).write_bytes(Location(prefix).read_bytes(name))
        return read_participants(Path(folder) / name)


def _find_table_beside(folder: Path) -> tuple[ParticipantTable | None, list[str]]:
    """The one table of people beside the scans; where there are several, a person has to choose."""
    if not folder.is_dir() or _is_bids(folder):
        return None, []
    tables = [
        path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".csv", ".tsv") and _has_people(path)
    ]
    if not tables:
        return None, []
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables[:5])
        return None, [f"several tables lie beside the scans ({names}): name one with --participants"]
    return read_participants(tables[0]), [f"labels come from {tables[0].name}, which lies beside the scans"]


def _has_people(path: Path) -> bool:
    """Whether a table can be read, names people or their scans, and says anything of them."""
    try:
        columns = {column.lower() for column in read_text_table(path).columns}
    except TableError:
        return False
    return _names_any(columns, ("subject", "file")) and _names_any(columns, ("age_years", "sex", "diagnosis"))


def _names_any(columns: set[str], keys: Sequence[str]) -> bool:
    return any(name in columns for key in keys for name in COLUMNS[key])
