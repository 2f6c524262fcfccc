"""Simulates a cohort into a BIDS folder, person by person, by as many processes as wanted."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroray.storage.simulate import atrophy, bids_writer, ground_truth, networks
from neuroray.storage.simulate.anatomy import grow_head, load_tissues, load_tissues_for, measure_head
from neuroray.storage.simulate.bold import take_bold
from neuroray.storage.simulate.people import CohortConfig, Person, draw_person
from neuroray.storage.simulate.regions import REGION_SPACING_MM
from neuroray.storage.simulate.sites import SITES
from neuroray.storage.simulate.t1w import take_t1w
from neuroray.storage.simulate.template import SimulationError, forget_finest_template, load_template

SIMULATION_VERSION = 1  # raised whenever the same config would give other voxels
_PEOPLE_PER_WORKER = 4  # a process must load the template first, which takes as long as some people


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSummary:
    """What a finished cohort holds.

    Attributes:
        num_subjects: People.
        num_visits: Visits; more than people where some came twice.
        num_scans: Scan files.
        num_simulated: Scan files made by this call; the rest was there already.
        size_bytes: Of all scan files.
    """

    num_subjects: int
    num_visits: int
    num_scans: int
    num_simulated: int
    size_bytes: int


def simulate_cohort(
    config: CohortConfig,
    out: str | Path,
    *,
    num_workers: int = 1,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> CohortSummary:
    """Writes the cohort; the same config gives the same bytes whatever the number of workers.

    Visits that are there already are kept, so that a run that was broken off goes on where it stopped, and a cohort can
    be made larger by asking for more people.

    Args:
        config: What to simulate.
        out: A new or empty folder, or one that holds this cohort or a smaller one.
        num_workers: Processes; 1 stays in this one.
        watch: Wrapped around the iterator over people (each gives its number of new scans), for a progress bar.

    Raises:
        SimulationError: the folder holds something else.
    """
    root = Path(out)
    _claim_folder(root, config)
    bids_writer.write_dataset_files(root, config)
    num_simulated = sum(watch(_simulate_people(config, root, num_workers)))
    people = [draw_person(config, index) for index in range(config.num_subjects)]
    bids_writer.write_participants(root, people)
    ground_truth.write_cohort_truth(root, people)
    paths = [path for person in people for _, _, path in _list_scans(root, config, person)]
    return CohortSummary(
        num_subjects=len(people),
        num_visits=sum(len(person.visit_ages_years) for person in people),
        num_scans=len(paths),
        num_simulated=num_simulated,
        size_bytes=sum(path.stat().st_size for path in paths),
    )


def _simulate_people(config: CohortConfig, root: Path, num_workers: int) -> Iterator[int]:
    """The number of new scans of each person, those first who were there already."""
    missing = [index for index in range(config.num_subjects) if not _is_finished(config, root, index)]
    yield from (0 for _ in range(config.num_subjects - len(missing)))
    work = functools.partial(simulate_person, config, root)
    num_workers = min(num_workers, math.ceil(len(missing) / _PEOPLE_PER_WORKER))
    if num_workers <= 1:
        yield from map(work, missing)
        ground_truth.write_maps(root, config.modalities)
        return
    # Spawned, not forked: the caller may hold threads (Ray, torch) that a fork would tear apart.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_load_maps, initargs=(config,)) as pool:
        maps = pool.submit(ground_truth.write_maps, root, config.modalities)
        try:
            yield from pool.map(work, missing)
            maps.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def simulate_person(config: CohortConfig, root: Path, index: int) -> int:
    """Makes all scans of one person; tells how many were made."""
    person = draw_person(config, index)
    num_scans = 0
    for visit_index in range(len(person.visit_ages_years)):
        if not _is_done(config, root, person, visit_index):
            num_scans += _simulate_visit(config, root, person, visit_index)
    return num_scans


def _simulate_visit(config: CohortConfig, root: Path, person: Person, visit_index: int) -> int:
    head = grow_head(config, person, visit_index)
    picture = take_t1w(config, person, visit_index, head) if "T1w" in config.modalities else None
    recording = take_bold(config, person, visit_index, head) if "bold" in config.modalities else None
    taken = {"T1w": picture, "bold": recording.picture if recording else None}
    for modality in config.modalities:
        scan = taken[modality]
        assert scan is not None
        sidecar = bids_writer.make_sidecar(SITES[person.site_index], modality, has_skull=config.head)
        path = bids_writer.scan_path(root, person, visit_index, modality)
        bids_writer.write_scan_file(path, scan.nifti, sidecar)
    ground_truth.write_visit_truth(
        root, person, visit_index, head=head, volumes=measure_head(head), picture=picture, recording=recording
    )
    return len(config.modalities)


def _load_maps(config: CohortConfig) -> None:
    """Makes what all people share, once per process."""
    load_tissues(REGION_SPACING_MM)
    atrophy.load_atrophy_fields()
    if "T1w" in config.modalities:
        load_tissues_for(config.spacing_mm)
    if config.registered:
        load_template(config.spacing_mm)
    if "bold" in config.modalities:
        load_tissues_for(config.bold_spacing_mm)
        networks.load_network_maps()
    forget_finest_template()


def _is_finished(config: CohortConfig, root: Path, index: int) -> bool:
    person = draw_person(config, index)
    return all(_is_done(config, root, person, visit_index) for visit_index in range(len(person.visit_ages_years)))


def _is_done(config: CohortConfig, root: Path, person: Person, visit_index: int) -> bool:
    truth = root / bids_writer.GROUND_TRUTH / "people" / f"{bids_writer.visit_label(person, visit_index)}.json"
    paths = [path for index, _, path in _list_scans(root, config, person) if index == visit_index]
    return truth.is_file() and all(path.is_file() for path in paths)


def _list_scans(root: Path, config: CohortConfig, person: Person) -> list[tuple[int, str, Path]]:
    return [
        (visit_index, modality, bids_writer.scan_path(root, person, visit_index, modality))
        for visit_index in range(len(person.visit_ages_years))
        for modality in config.modalities
    ]


def _claim_folder(root: Path, config: CohortConfig) -> None:
    """Writes the config into a free folder, or checks that it is the one that the folder was made with."""
    path = root / bids_writer.GROUND_TRUTH / "config.json"
    wanted: dict[str, Any] = {"simulation_version": SIMULATION_VERSION, **config.to_json()}
    if path.is_file():
        found = json.loads(path.read_text())
        found = {"registered": False} | found  # cohorts from before there were any
        differing = [name for name in wanted if found.get(name) != wanted[name] and name != "num_subjects"]
        if differing or found.get("num_subjects", 0) > config.num_subjects:
            raise SimulationError(
                f"{root} holds another simulated cohort (other {', '.join(differing) or 'num_subjects'})",
                given={name: found.get(name) for name in differing or ("num_subjects",)},
                expected={name: wanted[name] for name in differing or ("num_subjects",)},
                fix="choose another folder, or delete this one",
            )
    elif root.exists() and (not root.is_dir() or any(entry.name != "run.json" for entry in root.iterdir())):
        raise SimulationError(
            f"{root} is not free for a simulated cohort",
            given="a folder with other things in it, or a file",
            expected="a new or empty folder",
            fix="choose another folder",
        )
    bids_writer.write_json(path, wanted)
