"""The BIDS side of a simulated cohort: names, sidecars, tables and what else makes a folder valid."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import neuroray
from neuroray.storage.simulate.people import CohortConfig, Modality, Person
from neuroray.storage.simulate.sites import Site
from neuroray.storage.whole_file import replace_file

GROUND_TRUTH = "ground_truth"
_BIDS_VERSION = "1.10.0"
_FOLDERS: dict[Modality, str] = {"T1w": "anat", "bold": "func"}

_PARTICIPANT_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Person; the same at every session"},
    "age": {"Description": "Age at the first session", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "diagnosis": {
        "Description": "Group",
        "Levels": {"control": "healthy", "disease": "simulated disease with medial temporal atrophy"},
    },
    "cognition": {
        "Description": "Cognitive score, mean 100, standard deviation 15; carried by network coupling in BOLD"
    },
    "family_id": {"Description": "Shared by siblings, who share half of the variance of their anatomy"},
    "site": {"Description": "Scanner", "Levels": {"north": "3 T", "east": "3 T", "west": "1.5 T, thicker slices"}},
}
_SESSION_COLUMNS: dict[str, dict[str, Any]] = {
    "session_id": {"Description": "Session"},
    "age": {"Description": "Age at this session", "Units": "year"},
}
_README = """\
Simulated cohort
================

Nobody in this folder exists. Each head is the ICBM 2009a template (MNI152) as shipped by nilearn, deformed and scanned
by `neuroray simulate`. What was planted (age, disease, site, deformation, coupling of networks) lies in `{truth}/`.

- age widens the ventricles, thins the cortex, lowers contrast and darkens white matter around the ventricles
- the disease shrinks hippocampus, amygdala and the cortex beside them, and adds some years of ordinary ageing
- men have larger heads; siblings (`family_id`) have similar ones; some people came twice (`sub-*_sessions.tsv`)
- three sites differ in gain, contrast, noise, shading, voxel grid, tilt and storage
- in BOLD, the coupling of seven networks depends on sex and cognition

The template is by V. Fonov, A. C. Evans, K. Botteron, C. R. Almli, R. C. McKinstry, D. L. Collins and the Brain
Development Cooperative Group (NeuroImage 54, 2011); copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University. ROIs of the networks: Seitzman et al. (NeuroImage 206, 2020).
"""


def scan_stem(person: Person, visit_index: int, modality: Modality) -> str:
    """File name of a scan without its ending."""
    task = "_task-rest" if modality == "bold" else ""
    return f"{visit_label(person, visit_index)}{task}_{modality}"


def visit_label(person: Person, visit_index: int) -> str:
    """Subject, and session for those who came twice, as file names begin."""
    session = person.session(visit_index)
    return f"sub-{person.subject}" + (f"_ses-{session}" if session else "")


def scan_path(root: Path, person: Person, visit_index: int, modality: Modality) -> Path:
    """Where a scan belongs."""
    session = person.session(visit_index)
    folder = root / f"sub-{person.subject}" / (f"ses-{session}" if session else "") / _FOLDERS[modality]
    return folder / f"{scan_stem(person, visit_index, modality)}.nii.gz"


def write_scan_file(path: Path, nifti: bytes, sidecar: dict[str, Any]) -> None:
    """Writes a compressed scan and its sidecar; the same bytes every time (no name or time in the gzip header)."""
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)
    # Noise does not compress: a higher level costs seconds and saves a few per cent.
    replace_file(path, gzip.compress(nifti, compresslevel=1, mtime=0))


def make_sidecar(site: Site, modality: Modality, *, has_skull: bool) -> dict[str, Any]:
    """What BIDS wants to know of a scan."""
    shared = {
        "Manufacturer": "neuroray simulate",
        "InstitutionName": site.name,
        "MagneticFieldStrength": site.field_strength_t,
        "Modality": "MR",
    }
    if modality == "T1w":
        return shared | {"SkullStripped": not has_skull, "RepetitionTime": 2.3, "InversionTime": 0.9, "FlipAngle": 9}
    return shared | {
        "TaskName": "rest",
        "Instructions": "Lie still, eyes open.",
        "RepetitionTime": site.repetition_time_s,
        "EchoTime": site.echo_time_s,
        "FlipAngle": 80,
    }


def write_dataset_files(root: Path, config: CohortConfig) -> None:
    """What describes the folder as a whole."""
    description = {
        "Name": f"Simulated cohort, seed {config.seed}",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "raw",
        "Authors": ["neuroray simulate"],
        "Acknowledgements": "ICBM 2009a nonlinear symmetric template, McConnell Brain Imaging Centre",
        "ReferencesAndLinks": [
            "https://doi.org/10.1016/j.neuroimage.2010.07.033",
            "https://doi.org/10.1016/j.neuroimage.2019.116290",
        ],
        "GeneratedBy": [{"Name": "neuroray simulate", "Version": neuroray.__version__}],
    }
    write_json(root / "dataset_description.json", description)
    replace_file(root / "README", _README.format(truth=GROUND_TRUTH).encode())
    replace_file(root / ".bidsignore", f"{GROUND_TRUTH}/\nrun.json\n".encode())


def write_participants(root: Path, people: Sequence[Person]) -> None:
    """participants.tsv with its columns explained, and sessions.tsv of those who came twice."""
    rows = [
        (
            f"sub-{person.subject}",
            f"{person.age_years:.1f}",
            person.sex,
            person.diagnosis,
            str(person.cognition),
            person.family_id,
            person.site,
        )
        for person in people
    ]
    write_tsv(root / "participants.tsv", list(_PARTICIPANT_COLUMNS), rows)
    write_json(root / "participants.json", _PARTICIPANT_COLUMNS)
    for person in people:
        if len(person.visit_ages_years) > 1:
            _write_sessions(root / f"sub-{person.subject}", person)


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as BIDS wants it."""
    lines = ["\t".join(columns), *("\t".join(row) for row in rows)]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def write_json(path: Path, content: Any) -> None:
    """Indented JSON."""
    replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _write_sessions(folder: Path, person: Person) -> None:
    name = f"sub-{person.subject}_sessions"
    rows = [(f"ses-{person.session(index)}", f"{age:.1f}") for index, age in enumerate(person.visit_ages_years)]
    write_tsv(folder / f"{name}.tsv", list(_SESSION_COLUMNS), rows)
    write_json(folder / f"{name}.json", _SESSION_COLUMNS)
