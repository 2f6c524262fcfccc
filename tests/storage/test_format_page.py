from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from contracts.stored_scans import AFFINE, make_person, make_scan, write
from deltalake import DeltaTable

from neuroray.storage.store import ScanStore

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_page_reads_a_store_without_this_package(tmp_path: Path):
    kinds = ("scaled run", "int16 volume", "float64 volume", "values off the encoding's steps", "zeros")
    store = ScanStore.create(tmp_path / "store")
    for number, kind in enumerate(kinds):
        write(store, make_scan(kind, seed=9), f"s{number}")
        write(store, make_scan(kind), f"s{number}", participant=make_person(extra={"hand": "left"}))
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert "neuroray" not in snippet
    names: dict[str, Any] = {"store": store.uri}
    exec(snippet, names)
    assert sorted(names["scans"]) == ["s0", "s1", "s2", "s3", "s4"]
    for number, kind in enumerate(kinds):
        values, affine = names["scans"][f"s{number}"]
        np.testing.assert_array_equal(values, make_scan(kind).voxels, strict=True)
        np.testing.assert_array_equal(affine, AFFINE)


def test_the_page_names_every_column_and_attribute(tmp_path: Path):
    store = ScanStore.create(tmp_path / "store")
    record = write(store, make_scan())
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert set(DeltaTable(store.location.delta_uri("catalogue")).schema().to_arrow().names) <= named
    for key in ("zarr.json", "voxels/zarr.json"):
        attributes = json.loads(store.location.read_bytes(f"{record.path}/{key}"))["attributes"]
        assert set(attributes) <= named
        for inner in ("source", "encoding"):
            assert set(attributes.get(inner, ())) <= named


def test_digests_are_made_as_the_page_says(tmp_path: Path):
    store = ScanStore.create(tmp_path / "store")
    record = write(store, make_scan())
    described = json.loads(store.location.read_bytes(f"{record.path}/voxels/zarr.json"))
    seen = {name: described[name] for name in ("attributes", "data_type", "shape")}
    text = json.dumps(seen, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == record.voxels_sha256
    manifest = store.location.read_bytes(f"{record.path}.manifest.json")
    assert hashlib.sha256(manifest).hexdigest() == record.manifest_sha256
    sizes = [entry["size_bytes"] for entry in json.loads(manifest)["objects"].values()]
    assert record.size_bytes == sum(sizes) + len(manifest)
