"""The few operations worth writing by hand; torch only, so that they work alone on a bare GPU machine."""

from neuroray.kernels.errors import KernelError

__all__ = ["KernelError"]
