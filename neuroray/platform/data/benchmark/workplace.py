"""The files of the benchmark: one run as a store, and the same bytes in the ways of others; and who reads them how."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import zarr
from nibabel.nifti1 import Nifti1Image
from torch import Tensor

from neuroray.platform.data.benchmark.rounds import Contestant, list_files
from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.standardise import standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

RUN, SHORT_RUN = "run", "short-run"
_BLOCK_FRAMES = 40

_PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarr-python, fused pipeline": "zarr.core.codec_pipeline.FusedCodecPipeline",
    "zarr-python, zarrs pipeline": "zarrs.ZarrsCodecPipeline",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where everything lies.

    Attributes:
        folder: Removed by whoever made it.
        store: Holds `run`, and its first frames as `short-run`.
        shape: Of the run.
        short_frames: Frames of the short one.
    """

    folder: Path
    store: str
    shape: tuple[int, int, int, int]
    short_frames: int

    @property
    def frame_bytes(self) -> int:
        """Of one frame in int16."""
        return 2 * int(np.prod(self.shape[1:]))

    def voxels_folder(self, scan_id: str) -> Path:
        """The Zarr array of a scan."""
        return Path(self.store, ScanStore(self.store).record(scan_id).path, "voxels")


def prepare(folder: Path, scan: Scan, short_frames: int) -> Workplace:
    """Writes the run once in each way.

    The peers keep z-scored float16, as they do: one tensor (x, y, z, time) for BrainMT, a file per frame for SwiFT.
    """
    store = ScanStore.create(folder / "store")
    short = Scan(voxels=scan.voxels[:short_frames], affine=scan.affine, repetition_time_s=scan.repetition_time_s)
    for name, one in ((RUN, scan), (SHORT_RUN, short)):
        store.write(one, scan_id=name, subject=name, modality="bold")
    np.save(folder / "raw.npy", scan.voxels)
    _write_tensors(folder, scan.voxels, store)
    image = Nifti1Image(np.moveaxis(short.voxels, 0, -1), scan.affine, dtype=np.int16)
    nibabel.save(image, folder / "short.nii.gz")
    nibabel.save(image, folder / "short.nii")
    shape: Any = scan.voxels.shape
    return Workplace(folder=folder, store=store.uri, shape=shape, short_frames=short_frames)


def _write_tensors(folder: Path, voxels: np.ndarray, store: ScanStore) -> None:
    statistics: Any = store.read_statistics(RUN)
    whole = torch.empty((*voxels.shape[1:], len(voxels)), dtype=torch.float16)
    (folder / "frames").mkdir()
    for first in range(0, len(voxels), _BLOCK_FRAMES):
        block = torch.from_numpy(voxels[first : first + _BLOCK_FRAMES])
        scores = (block.float() - statistics.mean) / statistics.std
        scores = scores.masked_fill_(block == 0, (statistics.min - statistics.mean) / statistics.std).half()
        whole[..., first : first + len(block)] = scores.permute(1, 2, 3, 0)
        for index, frame in enumerate(scores, start=first):
            torch.save(frame.clone(), folder / "frames" / f"frame_{index}.pt")
    torch.save(whole, folder / "whole.pt")


def list_window_readers(place: Workplace, num_frames: int) -> list[Contestant]:
    """Ways to get the frames from a start on as a tensor (time x y z)."""
    reader = open_reader(place)
    voxels = list_files(Path(place.store, "scans", RUN))
    whole, frames, raw = place.folder / "whole.pt", place.folder / "frames", place.folder / "raw.npy"

    def read_ours(start: int) -> dict[str, Tensor]:
        return to_torch(reader.read_batch([ReadItem(scan_id=RUN, start=start, stop=start + num_frames)]))

    def read_whole(start: int, *, mmap: bool = False) -> Tensor:
        run = torch.load(whole, mmap=mmap)
        return run[..., start : start + num_frames].permute(3, 0, 1, 2).contiguous()

    def read_frames(start: int) -> Tensor:
        return torch.stack([torch.load(frames / f"frame_{index}.pt") for index in range(start, start + num_frames)])

    def read_raw(start: int) -> Tensor:
        return torch.from_numpy(np.array(np.load(raw, mmap_mode="r")[start : start + num_frames]))

    return [
        Contestant(name="ours", run=read_ours, files=voxels, remark="int16, checked (crc32c); z-scored on the device"),
        Contestant(
            name="ours, z-scored to float16 here",
            run=lambda start: standardise(read_ours(start), torch.float16),
            files=voxels,
            remark="on one CPU thread",
        ),
        Contestant(name="BrainMT's way: whole run from one tensor file, sliced", run=read_whole, files=(whole,)),
        Contestant(
            name="the same file, memory-mapped",
            run=lambda start: read_whole(start, mmap=True),
            files=(whole,),
            remark="not what BrainMT does",
        ),
        Contestant(name="SwiFT's way: one tensor file per frame", run=read_frames, files=list_files(frames)),
        *_list_zarr_readers(place, num_frames, voxels),
        Contestant(
            name="int16 without packing or checks, memory-mapped", run=read_raw, files=(raw,), remark="the floor"
        ),
    ]


def list_full_readers(place: Workplace) -> list[Contestant]:
    """Ways to read a whole run of `short_frames` frames as int16; the task's number says nothing."""
    store = ScanStore(place.store, version=ScanStore(place.store).version)
    packed, plain = place.folder / "short.nii.gz", place.folder / "short.nii"

    def read_nifti(path: Path) -> np.ndarray:
        return np.array(nibabel.load(path).dataobj)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]

    files = list_files(Path(place.store, "scans", SHORT_RUN))
    return [
        Contestant(name="ours", run=lambda _: store.read(SHORT_RUN).voxels, files=files),
        Contestant(name="nibabel, .nii.gz", run=lambda _: read_nifti(packed), files=(packed,)),
        Contestant(name="nibabel, .nii", run=lambda _: read_nifti(plain), files=(plain,)),
    ]


def check_windows(place: Workplace, num_frames: int) -> None:
    """Holds what every contestant gives against the values, before anything is timed.

    Raises:
        ValueError: one of them gives other numbers.
    """
    statistics: Any = ScanStore(place.store).read_statistics(RUN)
    start = place.shape[0] // 3
    stored = np.load(place.folder / "raw.npy", mmap_mode="r")[start : start + num_frames]
    values = torch.from_numpy(np.array(stored))
    for one in list_window_readers(place, num_frames):
        if one.obstacle is not None:
            continue
        found: Any = one.run(start)
        found = found["voxels"][0] if isinstance(found, dict) else found.squeeze(0)
        if found.dtype == torch.int16:
            right = torch.equal(found, values)
        else:
            brain = values != 0
            scores = (values[brain].float() - statistics.mean) / statistics.std
            # float16: 11 bits, so half a unit in the last place of numbers below 8
            right = bool((found[brain].float() - scores).abs().max() <= 2**-9)
        if not right:
            raise ValueError(f"{one.name} gives other numbers")


def open_reader(place: Workplace) -> WindowReader:
    """Ours, at the store's version."""
    return WindowReader(place.store, ScanStore(place.store).version)


def _list_zarr_readers(place: Workplace, num_frames: int, files: tuple[Path, ...]) -> list[Contestant]:
    """Other readers of the very same chunks."""
    folder = place.voxels_folder(RUN)

    def read_zarr(pipeline: str) -> Callable[[int], Tensor]:
        # zarrs 0.2.3 does not answer which chunks were missing, which zarr 3.4 asks where they are to be an error.
        fills_missing_chunks = pipeline.startswith("zarrs.")

        def read(start: int) -> Tensor:
            settings = {"codec_pipeline.path": pipeline, "array.read_missing_chunks": fills_missing_chunks}
            with zarr.config.set(settings):
                array = zarr.open_array(folder, mode="r")
                return torch.from_numpy(np.asarray(array[start : start + num_frames]))

        return read

    found = []
    for name, pipeline in _PIPELINES.items():
        package = pipeline.partition(".")[0]
        missing = None if importlib.util.find_spec(package) else f"{package} is not installed"
        remark = "a missing chunk reads as 0" if package == "zarrs" else ""
        found.append(Contestant(name=name, run=read_zarr(pipeline), files=files, obstacle=missing, remark=remark))
    missing = None if importlib.util.find_spec("tensorstore") else "tensorstore is not installed"
    found.append(
        Contestant(name="tensorstore", run=_read_tensorstore(folder, num_frames), files=files, obstacle=missing)
    )
    return found


def _read_tensorstore(folder: Path, num_frames: int) -> Callable[[int], Tensor]:
    def read(start: int) -> Tensor:
        import tensorstore  # pyright: ignore[reportMissingImports]: a peer, of the bench extra

        opened = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}).result()
        return torch.from_numpy(opened[start : start + num_frames].read().result())

    return read
