"""What was planted, saved beside the scans: a table of everybody, maps in the template, each head's own deformation.

`OUT/ground_truth/` holds `truth.tsv` (a row per visit; columns explained in `truth.json`), `config.json`, `maps/`
(where things happen, as NIfTI in the template), `people/` (a JSON per visit, and the control points of each person's
random field) and, for BOLD, `runs/` (network time courses and motion).
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32

from neuroray.storage.simulate import acquisition, atrophy, deformation
from neuroray.storage.simulate.acquisition import Picture
from neuroray.storage.simulate.anatomy import Affine, Head, Volumes
from neuroray.storage.simulate.bids_writer import GROUND_TRUTH, visit_label, write_json, write_tsv
from neuroray.storage.simulate.bold import MOTION_NAMES, Recording
from neuroray.storage.simulate.networks import NETWORKS, coupling_effects, load_network_maps
from neuroray.storage.simulate.people import Modality, Person
from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.sites import SITES
from neuroray.storage.simulate.template import SimulationError, load_template
from neuroray.storage.whole_file import replace_file

PlantedMap = Literal["ventricles", "cortex", "medial_temporal", "temporal_horn", "periventricular"]

_COLUMNS = {
    "participant_id": "Person",
    "session_id": "Session; n/a for those who came once",
    "age_years": "Age at this visit",
    "sex": "F or M",
    "diagnosis": "control or disease",
    "cognition": "Score as in participants.tsv",
    "family_id": "Shared by siblings",
    "site": "Scanner",
    "brain_age_years": "Age that drives all changes: age, personal offset and pace, and the disease's gap",
    "brain_age_gap_years": "Part of the brain age that is due to the disease",
    "severity": "Of the disease: about 1, 0 for controls; rises between sessions",
    "ventricles": "Strength of ventricular growth (rate of volume change)",
    "cortex": "Strength of cortical thinning (rate of volume change)",
    "medial_temporal": "Strength of medial temporal shrinkage, by age and disease (rate of volume change)",
    "sulcal_loss_fraction": "Part of the grey matter beside sulci that gave way to fluid",
    "medial_temporal_loss_fraction": "Part of the medial temporal grey matter that gave way to fluid",
    "horn_fraction": "How far the temporal horns have opened, 0 to 1",
    "white_darkening": "Loss of T1 signal around the ventricles, white matter = 1",
    "contrast_loss": "Part of the contrast between grey and white matter that is gone",
    "grey_ml": "Grey matter of this head",
    "white_ml": "White matter of this head",
    "csf_ml": "Fluid of this head, inside and around the brain",
    "ventricles_ml": "Lateral and third ventricles",
    "cortex_ml": "Cortical grey matter",
    "medial_temporal_ml": "Grey matter of the region that the disease shrinks",
    "min_jacobian": "Smallest ratio of template volume to head volume; above 0: nothing folds",
}


def write_visit_truth(
    root: Path,
    person: Person,
    visit_index: int,
    *,
    head: Head,
    volumes: Volumes,
    picture: Picture | None,
    recording: Recording | None,
) -> None:
    """Everything known of one visit; written after its scans, so that it says that they are whole."""
    folder, label = root / GROUND_TRUTH, visit_label(person, visit_index)
    buffer = io.BytesIO()
    np.save(buffer, head.controls)
    replace_file(folder / "people" / f"sub-{person.subject}_controls.npy", buffer.getvalue())
    scans: dict[str, Any] = {}
    if picture is not None:
        scans["T1w"] = _describe_picture(picture)
    if recording is not None:
        scans["bold"] = _describe_picture(recording.picture) | {
            "repetition_time_s": recording.repetition_time_s,
            "networks": list(NETWORKS),
            "coupling": _as_list(recording.coupling),
        }
        _write_run(folder / "runs" / f"{label}_task-rest_courses.tsv", recording)
    truth = {
        "row": _make_row(person, visit_index, head, volumes),
        "person": dataclasses.asdict(person),
        "site": dataclasses.asdict(SITES[person.site_index]),
        "stretch": _as_list(head.stretch),
        "scans": scans,
    }
    write_json(folder / "people" / f"{label}.json", truth)


def write_cohort_truth(root: Path, people: Sequence[Person]) -> None:
    """The table of all visits, put together from what `write_visit_truth` left, and what its columns mean."""
    folder = root / GROUND_TRUTH
    rows = []
    for person in people:
        for visit_index in range(len(person.visit_ages_years)):
            path = folder / "people" / f"{visit_label(person, visit_index)}.json"
            row = json.loads(path.read_text())["row"]
            rows.append([str(row[name]) for name in _COLUMNS])
    write_tsv(folder / "truth.tsv", list(_COLUMNS), rows)
    explained = {name: {"Description": text} for name, text in _COLUMNS.items()}
    write_json(folder / "truth.json", explained | {"coupling_effects": coupling_effects()})


def write_maps(root: Path, modalities: Sequence[Modality]) -> None:
    """Where in the template things happen: soft masks, and for BOLD the networks along the fourth axis.

    Maps that are there already are kept: they are the same for every cohort.
    """
    folder = root / GROUND_TRUTH / "maps"
    for name in get_args(PlantedMap):
        if not (folder / f"{name}.nii.gz").is_file():
            values, affine = getattr(load_regions(), name), load_template(REGION_SPACING_MM).affine
            _write_map(folder / f"{name}.nii.gz", values, affine)
    if "bold" in modalities and not (folder / "networks.json").is_file():
        networks = load_network_maps()
        _write_map(folder / "networks.nii.gz", np.moveaxis(networks.left + networks.right, 0, -1), networks.affine)
        write_json(folder / "networks.json", {"networks": list(NETWORKS)})


def read_truth(root: str | Path) -> list[dict[str, str | float]]:
    """The rows of `truth.tsv`, one per visit; numbers as floats, `session_id` empty for those who came once.

    Raises:
        SimulationError: the folder is no finished simulated cohort.
    """
    path = Path(root) / GROUND_TRUTH / "truth.tsv"
    if not path.is_file():
        raise SimulationError(
            f"{root} has no ground truth", expected=f"{GROUND_TRUTH}/truth.tsv", fix="neuroray simulate OUT ..."
        )
    names, *lines = (line.split("\t") for line in path.read_text().splitlines())
    words = ("participant_id", "session_id", "sex", "diagnosis", "family_id", "site")
    return [
        {
            name: ("" if text == "n/a" else text) if name in words else float(text)
            for name, text in zip(names, line, strict=True)
        }
        for line in lines
    ]


def warp_to_scan(
    root: str | Path,
    scan_name: str,
    name: PlantedMap,
    *,
    affine: Float[np.ndarray, "4 4"],
    shape: tuple[int, int, int],
) -> Float32[np.ndarray, "x y z"]:
    """One of the planted maps as it lies in a scan, for judging whether an explanation points at it.

    Args:
        root: The cohort's folder.
        scan_name: The scan's file name, with or without folders and ending.
        name: Which map.
        affine: Of the grid wanted, voxel indices to the scan's world; e.g. `Scan.affine`.
        shape: Of the grid wanted; e.g. `Scan.grid_shape`.

    Raises:
        SimulationError: the cohort knows no such scan.
    """
    stem = Path(scan_name).name.split(".")[0]
    label, _, modality = stem.replace("_task-rest", "").rpartition("_")
    people = Path(root) / GROUND_TRUTH / "people"
    path = people / f"{label}.json"
    truth = json.loads(path.read_text()) if label and path.is_file() else {"scans": {}}
    if modality not in truth["scans"]:
        raise SimulationError(
            f"{scan_name} is no scan of this simulated cohort", expected="a name such as sub-0001_T1w.nii.gz"
        )
    controls = np.load(people / f"{label.split('_')[0]}_controls.npy")
    velocity = atrophy.combine(**{field: truth["row"][field] for field in ("ventricles", "cortex", "medial_temporal")})
    to_world = np.array(truth["scans"][modality]["head_to_world"]) @ np.array(truth["stretch"])
    displacement = deformation.deform(controls, velocity)
    points = deformation.map_to_template(np.linalg.inv(to_world) @ affine, shape, displacement)
    return deformation.sample(
        getattr(load_regions(), name), deformation.to_index(points, load_template(REGION_SPACING_MM).affine)
    )


def _make_row(person: Person, visit_index: int, head: Head, volumes: Volumes) -> dict[str, str | float]:
    session = person.session(visit_index)
    words = {
        "participant_id": f"sub-{person.subject}",
        "session_id": f"ses-{session}" if session else "n/a",
        "age_years": person.visit_ages_years[visit_index],
        "sex": person.sex,
        "diagnosis": person.diagnosis,
        "cognition": person.cognition,
        "family_id": person.family_id,
        "site": person.site,
    }
    numbers = dataclasses.asdict(head.state) | dataclasses.asdict(volumes)
    return words | {name: round(float(value), 5) for name, value in numbers.items()}


def _describe_picture(picture: Picture) -> dict[str, Any]:
    placement = picture.placement
    return {
        "head_to_world": _as_list(placement.head_to_world),
        "affine_before_storage": _as_list(placement.affine),
        "shape_before_storage": list(placement.shape),
        "gain": picture.gain,
    }


def _write_run(path: Path, recording: Recording) -> None:
    values = np.concatenate([recording.time_courses, recording.motion], axis=1)
    write_tsv(path, [*NETWORKS, *MOTION_NAMES], ([f"{value:.6f}" for value in frame] for frame in values))


def _write_map(path: Path, values: np.ndarray, affine: Affine) -> None:
    stored = acquisition.encode_int16(values, slope=1e-4, intercept=0.0)
    nifti = acquisition.make_nifti(stored, affine, slope=1e-4, intercept=0.0, repetition_time_s=None)
    replace_file(path, gzip.compress(nifti, compresslevel=6, mtime=0))


def _as_list(matrix: np.ndarray) -> list[Any]:
    return np.round(matrix, 8).tolist()
