"""Which implementation of an operation runs, the caller's by name or the first that can; loaded when it first does."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from neuroray.kernels.errors import KernelError


def choose(
    operation: str,
    impl: str,
    find_obstacles: Mapping[str, Callable[[torch.device, torch.dtype], str | None]],
    preferred: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """The name of what would run: `"auto"` takes the first of `preferred` that can, any other name is itself.

    Args:
        operation: Its name, for errors.
        impl: `"auto"` or a name of `find_obstacles`.
        find_obstacles: By implementation: why it cannot run for a device and a dtype here; None: it can.
        preferred: Names; the last runs anywhere.
        device: Of the inputs.
        dtype: Of the arithmetic.

    Raises:
        KernelError: no such implementation, or one that cannot run here.
    """
    if impl == "auto":
        return next(name for name in preferred if find_obstacles[name](device, dtype) is None)
    if impl not in find_obstacles:
        expected = f"auto, {', '.join(find_obstacles)}"
        raise KernelError(f"{operation} has no such implementation", given=impl, expected=expected)
    obstacle = find_obstacles[impl](device, dtype)
    if obstacle is not None:
        raise KernelError(f"{operation} cannot run {impl!r} here", given=obstacle, fix='take impl="auto"')
    return impl


def runs_anywhere(device: torch.device, dtype: torch.dtype) -> None:
    """The obstacle of an implementation that needs nothing but torch: none."""
    del device, dtype


def call_when_used(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is first called: what it stands on is large, or absent."""

    def call(*inputs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*inputs)

    return call


def find_obstacle_when_used(module: str) -> Callable[[torch.device, torch.dtype], str | None]:
    """The `find_obstacle` of such a module; that it cannot be imported is one, too."""

    def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
        try:
            loaded = importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            # What a module stands on may be absent, or refuse to start (a driver, a compiler).
            return f"{module.rpartition('.')[2]} cannot be imported: {error}"
        return loaded.find_obstacle(device, dtype)

    return find_obstacle
