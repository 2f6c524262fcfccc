"""Which implementation of an operation runs: the caller's by name, or the first that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
