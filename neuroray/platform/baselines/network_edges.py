"""The connectivity of a run between functional networks, as labels that a model of runs can be asked for."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from neuroray.platform.baselines.connectivity import connect
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.series import CleaningConfig, clean_series, read_region_series
from neuroray.platform.data.atlas import label_networks
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

PREFIX = "fc_"
NETWORKS = (
    "Auditory",
    "CinguloOpercular",
    "DefaultMode",
    "DorsalAttention",
    "FrontoParietal",
    "MedialTemporalLobe",
    "ParietoMedial",
    "Reward",
    "Salience",
    "SomatomotorDorsal",
    "SomatomotorLateral",
    "VentralAttention",
    "Visual",
)
"""Of Seitzman et al. 2020, in the order of `label_networks`."""


def name_edge(first: str, second: str) -> str:
    """The label of a pair of networks."""
    return f"{PREFIX}{first}_{second}"


def list_edges(networks: tuple[str, ...] = NETWORKS) -> tuple[str, ...]:
    """The labels of all pairs, in the order of the upper triangle."""
    return tuple(name_edge(first, second) for first, second in combinations(networks, 2))


def measure_edges(store: ScanStore, record: ScanRecord, cleaning: CleaningConfig) -> dict[str, float]:
    """Fisher z of the correlation of the mean series of each pair of networks, by label.

    A voxel belongs to the network of the nearest of 300 regions within 10 mm, by the run's affine, which must lead to
    MNI152 space; that is not checked, for no header says it reliably. Pairs with a network that has no voxel in the
    brain are left out.

    Raises:
        BaselineError: no run, no repetition time where a frequency needs one, or fewer than two networks in the image.
        StoreError: the run cannot be read.
    """
    if len(record.shape) != 4:
        raise BaselineError(f"{record.scan_id} has no frames", given=record.shape, expected="a time series")
    x, y, z = record.shape[1:]
    labels, names = label_networks((x, y, z), np.array(record.affine).reshape(4, 4))
    brain = store.read_mask(record.scan_id)
    if brain is not None:
        labels = np.where(brain, labels, 0)
    present = [index for index in range(len(names)) if (labels == index + 1).any()]
    if len(present) < 2:
        raise BaselineError(
            f"the networks do not lie in the image of {record.scan_id}",
            given=f"{len(present)} of {len(names)}",
            fix="bring runs to MNI152 space before the ingest",
        )
    series = read_region_series(store, record.scan_id, labels, len(names))[:, present]
    edges = connect(clean_series(series, record.repetition_time_s, cleaning))
    pairs = combinations((names[index] for index in present), 2)
    return {name_edge(*pair): float(edge) for pair, edge in zip(pairs, edges, strict=True)}
