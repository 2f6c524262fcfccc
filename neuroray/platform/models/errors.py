"""ModelError: what a model cannot be built from, or cannot take as input."""

from __future__ import annotations

from neuroray.errors import NeurorayError


class ModelError(NeurorayError, ValueError):
    """A backbone, weight file or input that does not fit the model: says what was given and what was expected."""
