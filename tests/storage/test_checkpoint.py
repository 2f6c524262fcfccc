from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.stored_scans import FailingWrites

from neuroray.storage.checkpoint import load_weights, save_weights
from neuroray.storage.faults import StoreError
from neuroray.storage.locations import Location

CONFIG = {"format": 1, "model": {"hidden": 3}, "classes": ["CN", "AD"]}
PROVENANCE = {"seed": 7, "commit": None}


def make_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(5, 3, generator=draw)
    return {
        "head.weight": shared,
        "tied.weight": shared,
        "half": torch.randn(7, generator=draw).to(torch.bfloat16),
        "turned": torch.randn(3, 65, generator=draw).T,
        "num_batches": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert (
            found[name]
            .contiguous()
            .view(torch.uint8 if tensor.ndim else tensor.dtype)
            .equal(tensor.contiguous().view(torch.uint8 if tensor.ndim else tensor.dtype))
        )


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "folder":
        return Location(tmp_path / "run" / "model")
    return Location(request.getfixturevalue("s3_bucket") + "/run/model")


def test_weights_are_loaded_as_they_were_saved(folder: Location):
    save_weights(folder, make_weights(), CONFIG, PROVENANCE)
    weights, config, provenance = load_weights(folder.uri)
    assert_same_weights(weights, make_weights())
    assert (config, provenance) == (CONFIG, PROVENANCE)


def test_a_crash_at_any_object_leaves_none_or_all(folder: Location, monkeypatch: pytest.MonkeyPatch):
    save_weights(folder, make_weights(0), CONFIG, PROVENANCE)
    failing = FailingWrites(monkeypatch)
    for written in (0, 1):
        failing.left = written
        with pytest.raises(StoreError, match="no space left"):
            save_weights(folder, make_weights(1), CONFIG, PROVENANCE)
        with pytest.raises(StoreError, match="no checkpoint"):
            load_weights(folder)
    failing.left = 2
    save_weights(folder, make_weights(1), CONFIG, PROVENANCE)
    assert_same_weights(load_weights(folder)[0], make_weights(1))


def test_what_cannot_be_saved_leaves_the_old_one(folder: Location):
    save_weights(folder, make_weights(), CONFIG, PROVENANCE)
    for weights, config in (
        (make_weights(), {"path": Path("x")}),
        (make_weights(), {"spacing_mm": float("nan")}),
        (make_weights(), {"training": {}}),
        ({"a": [1, 2]}, CONFIG),
    ):
        with pytest.raises(StoreError, match=r"configuration|whole tensor"):
            save_weights(folder, weights, config, PROVENANCE)  # type: ignore[arg-type]
    assert_same_weights(load_weights(folder)[0], make_weights())


def test_damaged_weights_are_never_loaded(folder: Location):
    save_weights(folder, make_weights(), CONFIG, PROVENANCE)
    intact = folder.read_bytes("model.safetensors")
    for offset in (0, 9, len(intact) // 2, len(intact) - 1):
        folder.write_bytes("model.safetensors", intact[:offset] + bytes([intact[offset] ^ 1]) + intact[offset + 1 :])
        with pytest.raises(StoreError, match="not the file"):
            load_weights(folder)
    folder.write_bytes("model.safetensors", intact[:-1])
    with pytest.raises(StoreError, match=f"{len(intact) - 1} bytes.*expected {len(intact)} bytes"):
        load_weights(folder)
    folder.delete("model.safetensors")
    with pytest.raises(StoreError, match=r"cannot read model\.safetensors"):
        load_weights(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weights": {}, "training": {}}', '{"weights": 3, "training": {}}']
)
def test_a_configuration_that_is_none_is_told(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StoreError, match=r"config\.json in .* (is not a checkpoint's|does not describe)"):
        load_weights(tmp_path)


def test_other_programs_read_the_weights(tmp_path: Path):
    from safetensors import safe_open

    save_weights(tmp_path, make_weights(), CONFIG, PROVENANCE)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        torch.testing.assert_close(file.get_tensor("turned"), make_weights()["turned"], rtol=0, atol=0)
