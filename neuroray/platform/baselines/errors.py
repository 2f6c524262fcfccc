"""The error of the baselines."""

from neuroray.errors import NeurorayError


class BaselineError(NeurorayError, ValueError):
    """A comparison that cannot be made: a target without spread, runs on different grids, a package that is missing."""
