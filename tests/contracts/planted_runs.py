"""A small store of runs in which sex couples two blocks of the brain and cognition couples two others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuroray.storage.bids import Participant
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

GRID = (9, 10, 8)
NUM_FRAMES = 50
REPETITION_TIME_S = 2.0
AFFINE = np.array([[9.0, 0, 0, -36.0], [0, 9.0, 0, -60.0], [0, 0, 9.0, -30.0], [0, 0, 0, 1.0]])


def block_labels() -> np.ndarray:
    """Four blocks of the inner grid, 1 to 4; 0 is background."""
    labels = np.zeros(GRID, dtype=np.int16)
    labels[1:4, 1:5, 1:7], labels[5:8, 1:5, 1:7] = 1, 2
    labels[1:4, 5:9, 1:7], labels[5:8, 5:9, 1:7] = 3, 4
    return labels


def make_run(rng: np.random.Generator, *, sex: str, mind: float, noise: float = 2.0) -> Scan:
    """Blocks 1 and 2 fluctuate together in men and against each other in women, 3 and 4 as the mind has it."""
    coupling = np.eye(4)
    coupling[0, 1] = coupling[1, 0] = 0.6 if sex == "M" else -0.6
    coupling[2, 3] = coupling[3, 2] = 0.8 * np.tanh(mind)
    courses = rng.standard_normal((NUM_FRAMES, 4)) @ np.linalg.cholesky(coupling).T
    labels = block_labels()
    inside = labels > 0
    voxels = np.zeros((NUM_FRAMES, *GRID), dtype=np.float32)
    drift = 20 * np.linspace(-1, 1, NUM_FRAMES)[:, None]
    change = 4 * courses[:, labels[inside] - 1] + drift + noise * rng.standard_normal((NUM_FRAMES, inside.sum()))
    voxels[:, inside] = 500 + 20 * labels[inside] + change
    return Scan(voxels=voxels, affine=AFFINE, repetition_time_s=REPETITION_TIME_S)


def make_runs(path: Path, *, num_subjects: int = 60, seed: int = 0, noise: float = 2.0) -> ScanStore:
    """People in turn man and woman; every sixth pair of neighbours is a family. Cognition is 100 + 15 minds."""
    store = ScanStore.create(path)
    rng = np.random.default_rng(seed)
    records = []
    for number in range(num_subjects):
        subject, sex, mind = f"p{number:03d}", "MF"[number % 2], float(rng.standard_normal())
        person = Participant(
            subject=subject,
            sex=sex,
            cognition=round(100 + 15 * mind, 1),
            family_id=f"f{number // 2}" if (number // 2) % 6 == 0 else None,
        )
        run = prepare(make_run(rng, sex=sex, mind=mind, noise=noise), find_profile("fmri_minimal"))
        records.append(
            store.write(
                run, scan_id=f"{subject}_bold", subject=subject, modality="bold", participant=person, commit=False
            )
        )
    store.commit(records)
    return store
