"""A cohort with known ground truth, grown from real anatomy: the default on which everything can be run and judged."""

from neuroray.storage.simulate.cohort import CohortSummary, simulate_cohort
from neuroray.storage.simulate.ground_truth import PlantedMap, read_truth, warp_to_scan
from neuroray.storage.simulate.people import CohortConfig
from neuroray.storage.simulate.template import SimulationError

__all__ = [
    "CohortConfig",
    "CohortSummary",
    "PlantedMap",
    "SimulationError",
    "read_truth",
    "simulate_cohort",
    "warp_to_scan",
]
