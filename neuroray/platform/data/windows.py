"""Windows: which frames of each run are read in an epoch, a pure function of config, seed, epoch and scan."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from neuroray.config import Config
from neuroray.platform.data.plan import Items, PlanError, ReadItem


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig(Config):
    """How windows are taken from runs.

    Attributes:
        sampler: `whole`: scans as they are. `random`: in every epoch other windows, each start equally likely.
            `cover`: in every epoch the same ones, which leave no frame out.
        num_frames: Of a window.
        per_scan: Random windows of each scan in an epoch, drawn independently.
        stride: Frames from the start of one covering window to the next; None: a window's length, so none overlap.
        tail: Where the last covering window would go beyond the run: `align` moves it back to end with the run (some
            frames are then read twice), `pad` fills it up behind the run, masked.
        short: What becomes of a run that is shorter than a window: `refuse`, `pad` (masked), or keep it `whole` (a row
            of fewer frames: batches of one).
    """

    sampler: Literal["whole", "random", "cover"] = "whole"
    num_frames: int | None = None
    per_scan: int = 1
    stride: int | None = None
    tail: Literal["align", "pad"] = "align"
    short: Literal["refuse", "pad", "whole"] = "refuse"

    def __post_init__(self) -> None:
        if (self.sampler == "whole") != (self.num_frames is None):
            expected = "num_frames for `random` and `cover`, and none for `whole`"
            raise PlanError("windows have a length, whole scans have none", given=self, expected=expected)
        if self.num_frames is None:
            return
        if self.num_frames < 1 or self.per_scan < 1:
            raise PlanError("a window needs a frame, and a scan a window", given=self, expected="1 or more of each")
        if self.stride is not None and not 1 <= self.stride <= self.num_frames:
            raise PlanError(
                "with this stride frames would be left out", given=f"stride {self.stride}", expected="1 to num_frames"
            )

    def covering(self) -> WindowConfig:
        """The same windows for an evaluation: every frame in at least one."""
        return dataclasses.replace(self, sampler="cover") if self.sampler == "random" else self


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWindows:
    """Windows of one length at starts that are drawn by a keyed hash of seed, epoch, scan and number.

    Attributes:
        runs: Scan id and frames of each run.
        config: Length, windows per scan, and what becomes of short runs.
        seed: Key of the draws.
    """

    runs: tuple[tuple[str, int], ...]
    config: WindowConfig
    seed: int

    def __post_init__(self) -> None:
        for scan_id, num_frames in self.runs:
            _find_short_window(scan_id, num_frames, self.config)

    def __len__(self) -> int:
        return len(self.runs) * self.config.per_scan

    def item(self, index: int, epoch: int) -> ReadItem:
        """The windows of a scan have neighbouring indices.

        Raises:
            IndexError: no such index.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        run_index, number = divmod(index, self.config.per_scan)
        scan_id, num_frames = self.runs[run_index]
        short = _find_short_window(scan_id, num_frames, self.config)
        if short is not None:
            return short
        length = _length(self.config)
        start = _draw(num_frames - length + 1, self.seed, epoch, scan_id, number)
        return ReadItem(scan_id=scan_id, start=start, stop=start + length)


def choose_windows(
    scan_ids: Sequence[str], num_frames: Mapping[str, int], config: WindowConfig, *, seed: int = 0
) -> Items:
    """What a plan over these scans reads.

    Args:
        scan_ids: In this order.
        num_frames: Of each of them; not looked at for whole scans.
        config: Which windows.
        seed: Of the random ones.

    Raises:
        PlanError: a scan without frames, or a short one where `short` is `refuse`.
    """
    if config.sampler == "whole":
        return tuple(ReadItem(scan_id=scan_id) for scan_id in scan_ids)
    missing = [scan_id for scan_id in scan_ids if scan_id not in num_frames]
    if missing:
        raise PlanError(
            "windows are taken from time series",
            given=f"{missing[0]} without frames",
            fix="--data.windows.sampler whole",
        )
    runs = tuple((scan_id, num_frames[scan_id]) for scan_id in scan_ids)
    if config.sampler == "random":
        return RandomWindows(runs=runs, config=config, seed=seed)
    return tuple(window for scan_id, frames in runs for window in cover_run(scan_id, frames, config))


def cover_run(scan_id: str, num_frames: int, config: WindowConfig) -> list[ReadItem]:
    """Windows of one run, in order of their starts, of which every frame is in one.

    Raises:
        PlanError: the run is short and `short` is `refuse`.
    """
    short = _find_short_window(scan_id, num_frames, config)
    if short is not None:
        return [short]
    length = _length(config)
    stride = config.stride or length
    whole = num_frames - length
    windows = [ReadItem(scan_id=scan_id, start=start, stop=start + length) for start in range(0, whole + 1, stride)]
    if whole % stride:
        start = whole if config.tail == "align" else whole - whole % stride + stride
        padding = max(0, start + length - num_frames)
        windows.append(ReadItem(scan_id=scan_id, start=start, stop=start + length - padding, padding=padding))
    return windows


def _find_short_window(scan_id: str, num_frames: int, config: WindowConfig) -> ReadItem | None:
    """The one window of a run that is shorter than the windows asked for; None where it is not."""
    missing = _length(config) - num_frames
    if missing <= 0:
        return None
    if config.short == "refuse" or num_frames < 1:
        raise PlanError(
            f"{scan_id} is shorter than a window",
            given=f"{num_frames} frames",
            expected=f"{config.num_frames} or more",
            fix="--data.windows.short pad, or whole; a smaller --data.windows.num-frames; or leave the scan out",
        )
    return ReadItem(scan_id=scan_id, start=0, stop=num_frames, padding=missing if config.short == "pad" else 0)


def _length(config: WindowConfig) -> int:
    if config.num_frames is None:
        raise PlanError("whole scans have no windows", given=config, expected="sampler `random` or `cover`")
    return config.num_frames


def _draw(size: int, *key: str | int) -> int:
    """One of `0 .. size-1`: 128 bits of BLAKE2b, so that no start is preferred by more than one in 10^30."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little") % size
