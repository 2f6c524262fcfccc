"""The error of everything that is done with a brain age gap."""

from __future__ import annotations

from neuroray.errors import NeurorayError


class GapError(NeurorayError, ValueError):
    """A gap that would not hold: a correction fitted on those it is to judge, too few controls, ages that differ."""
