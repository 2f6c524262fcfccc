from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from neuroray.storage.group import ArrayContent, GroupContent, Packing, WrittenGroup
from neuroray.storage.locations import Location
from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

PUMI = Path(__file__).resolve().parents[1] / "data/pumi"


def make_content(values: np.ndarray, **attributes: object) -> GroupContent:
    dimensions = ("time", "x", "y", "z")[-values.ndim :]
    return GroupContent({"voxels": ArrayContent(values=values, dimensions=dimensions, is_sharded=True)}, attributes)


def describe(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and shard shape that an array of this shape gets; its values take no memory."""
    content = make_content(np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape)))
    document = content._metadata["voxels/zarr.json"]
    (sharding,) = document["codecs"]
    return tuple(sharding["configuration"]["chunk_shape"]), tuple(
        document["chunk_grid"]["configuration"]["chunk_shape"]
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((200, 91, 109, 91), "int16"),
        ((201, 64, 64, 36), "int16"),
        ((3, 128, 129, 127), "float32"),
        ((256, 256, 256), "int16"),
        ((91, 109, 91), "uint8"),
        ((1, 1, 1), "float64"),
    ],
)
def test_a_chunk_is_some_whole_frames_of_up_to_16_mb_and_a_shard_the_run(shape: tuple[int, ...], dtype: str):
    chunk, shard = describe(shape, dtype)
    assert chunk[1:] == shape[1:]
    chunk_bytes = math.prod(chunk) * np.dtype(dtype).itemsize
    array_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    assert min(array_bytes, 8 * 2**20) <= chunk_bytes <= 16 * 2**20
    # One shard holds all, with less than one chunk of padding.
    assert shape[0] <= shard[0] < shape[0] + chunk[0]
    assert shard[1:] == shape[1:]


def test_the_same_content_is_the_same_bytes_whoever_writes(tmp_path: Path):
    # The compressor would use threads when called from the main thread, and then lay its blocks in any order.
    values = np.random.default_rng(0).integers(0, 900, (20, 31, 64, 33)).astype(np.int16)
    written: list[WrittenGroup] = []

    def write(name: str) -> None:
        content = make_content(values.copy(), flags=["a"])
        written.append(content.write(Location(tmp_path / name), content.digest[:16]))

    write("here")
    threads = [threading.Thread(target=write, args=(f"there-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(written)) == 1


def test_every_difference_is_another_digest():
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    contents = (
        make_content(values),
        make_content(values + 1),
        make_content(values.astype(np.int32)),
        make_content(values.reshape(4, 3, 2)),
        make_content(values, flags=["a"]),
        make_content(values, flags=["b"]),
    )
    for one, other in itertools.combinations(contents, 2):
        assert one.digest != other.digest
    assert make_content(values).digest == make_content(values.astype(">i2")[:]).digest


def test_both_packings_give_back_every_bit_and_the_small_one_is_smaller(tmp_path: Path):
    (path,) = PUMI.glob("sub-001/func/*task-rest_bold.nii.gz")
    scan = read_scan(path)
    scans = ScanStore.create(tmp_path / "store")
    packings: tuple[Packing, ...] = ("fast", "small")
    sizes = {
        packing: scans.write(scan, scan_id=packing, subject="s", modality="bold", packing=packing).size_bytes
        for packing in packings
    }
    for packing in packings:
        np.testing.assert_array_equal(scans.read(packing).voxels, scan.voxels)
    assert scans.verify() == []
    assert sizes["small"] < 0.8 * sizes["fast"]


def test_the_same_scan_in_another_packing_is_a_new_version(tmp_path: Path):
    scan = Scan(voxels=np.arange(3 * 5 * 7, dtype=np.int16).reshape(3, 5, 7), affine=np.eye(4))
    scans = ScanStore.create(tmp_path / "store")
    first = scans.write(scan, scan_id="a", subject="s", modality="any")
    assert scans.write(scan, scan_id="a", subject="s", modality="any") == first
    assert scans.write(scan, scan_id="a", subject="s", modality="any", packing="small").path != first.path
    np.testing.assert_array_equal(scans.read("a").voxels, scan.voxels)
