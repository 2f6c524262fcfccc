"""KernelError: inputs that an operation cannot take, or an implementation that cannot run here."""

from __future__ import annotations

from neuroray.errors import NeurorayError


class KernelError(NeurorayError, ValueError):
    """A wrong shape, dtype, device or option given to an operation: says what was given and what was expected."""
