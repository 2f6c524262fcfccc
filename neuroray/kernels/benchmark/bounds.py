"""The least time that a case could take on this machine, and what would set it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuroray.kernels.benchmark.cases import STATES, Case, ConvCase, PoolCase, ScanCase
from neuroray.kernels.benchmark.machine import measure_copy_rate, measure_seconds, read_gpu_clock_hz

EXPONENTIALS_PER_CLOCK = 16
LANES = 128
"""Of one multiprocessor, sm_80 to sm_90: results of the exponential unit, and lanes that can start an instruction."""

OPERATIONS = {"forward": 6, "backward": 14}
"""Per token, channel and state: one exponential and the multiplications and additions that the formula cannot avoid."""

SCAN_TENSORS = {"forward": 4, "backward": 7}
"""Of (batch, token, channel) that must be read or written: u, delta, z, out; u, delta, z, dout, du, ddelta, dz."""


CONV_TENSORS = {"forward": 2, "backward": 3}
"""The same of a convolution: x, out; x, dout, dx."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Attributes: `name` says what limits, and whether its rate was measured here or is an estimate."""

    name: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates of one device, measured once."""

    device: torch.device
    copy_bytes_per_s: float

    def find(self, case: Case) -> dict[str, Bound]:
        """The tightest bound of each pass."""
        parts = self._bound(case)
        names = parts["forward"].keys()
        parts["forward and backward"] = {name: parts["forward"][name] + parts["backward"][name] for name in names}
        tightest = {step: max(bounds, key=lambda one: bounds[one]) for step, bounds in parts.items()}
        return {step: Bound(name, parts[step][name] * 1e3) for step, name in tightest.items()}

    def _bound(self, case: Case) -> dict[str, dict[str, float]]:
        if isinstance(case, ScanCase):
            return self._bound_scan(case)
        if isinstance(case, PoolCase):
            return self._bound_pool(case)
        return self._bound_conv(case)

    def _bound_conv(self, case: ConvCase) -> dict[str, dict[str, float]]:
        size_bytes = case.batch * case.tokens * case.channels * case.dtype.itemsize
        seconds = {step: count * size_bytes / self.copy_bytes_per_s for step, count in CONV_TENSORS.items()}
        return {step: {"memory (copy measured)": one} for step, one in seconds.items()}

    def _bound_scan(self, case: ScanCase) -> dict[str, dict[str, float]]:
        places = case.batch * case.tokens * case.channels
        small = 2 * case.batch * case.tokens * STATES
        work = places * STATES * (2 if case.both else 1)
        found: dict[str, dict[str, float]] = {}
        for step, count in SCAN_TENSORS.items():
            size_bytes = (places * count + small * (1 if step == "forward" else 2)) * case.dtype.itemsize
            found[step] = {"memory (copy measured)": size_bytes / self.copy_bytes_per_s}
            if self.device.type == "cuda":
                clocks = torch.cuda.get_device_properties(self.device).multi_processor_count * read_gpu_clock_hz()
                found[step] |= {
                    "exponentials (estimate)": work / (clocks * EXPONENTIALS_PER_CLOCK),
                    "instruction issue (estimate)": work * OPERATIONS[step] / (clocks * LANES),
                }
        return found

    def _bound_pool(self, case: PoolCase) -> dict[str, dict[str, float]]:
        h = torch.randn(case.rows, case.channels, device=self.device).to(case.dtype)
        both = torch.randn(2 * case.hidden, case.channels, device=self.device).to(case.dtype)
        product = measure_seconds(lambda: h @ both.T, self.device)
        read = h.numel() * h.element_size() / self.copy_bytes_per_s
        return {
            "forward": {"matrix products (measured)": product, "memory (copy measured)": read},
            "backward": {"matrix products (measured)": 2 * product, "memory (copy measured)": 2 * read},
        }


def measure_limits(device: torch.device) -> Limits:
    """Copies once to learn what memory gives."""
    return Limits(device, measure_copy_rate(device))
