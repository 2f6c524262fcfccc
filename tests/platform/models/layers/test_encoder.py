"""The slice encoder: what it reads out, that it stays frozen, where its weights come from, and what it attends to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers import encoder_weights
from neuroray.platform.models.layers.encoder import SliceEncoder, SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig

IMAGE_SIZE = 32


def build(**options: Any) -> SliceEncoder:
    """The smallest transformer that timm ships, 306 thousand parameters in 6 blocks."""
    return SliceEncoderConfig(**{"backbone": "test_vit", **options}).build(IMAGE_SIZE)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def weight_file(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes a timm model's weights; gives the settings that name the file."""

    def write(name: str = "test_vit", seed: int = 3, **options: Any) -> dict[str, str]:
        torch.manual_seed(seed)
        path = tmp_path / "weights.safetensors"
        save_file(timm.create_model(name, **options).state_dict(), path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"weights": "file", "weights_file": str(path), "weights_sha256": sha256}

    return write


@pytest.mark.parametrize(
    ("backbone", "readout"),
    [("test_vit", "cls"), ("test_vit", "pool"), ("test_resnet", "pool"), ("mobilenetv3_small_050", "pool")],
)
def test_vectors_are_those_that_timm_itself_gives(backbone: str, readout: Any, images: torch.Tensor) -> None:
    encoder = build(backbone=backbone, readout=readout, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    sized = {"img_size": IMAGE_SIZE} if backbone == "test_vit" else {}
    peer = timm.create_model(backbone, num_classes=0, **sized).eval()
    peer.load_state_dict(encoder.backbone.state_dict())
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        expected = peer((images - mean) / std)
    # Batches of another size are added up in another order.
    assert torch.allclose(encoder(images), expected, atol=1e-5)


def test_the_mean_readout_takes_all_tokens_after_the_norm(images: torch.Tensor) -> None:
    encoder = build(readout="mean")
    peer = timm.create_model("test_vit", num_classes=0, img_size=IMAGE_SIZE).eval()
    peer.load_state_dict(encoder.backbone.state_dict())
    with torch.no_grad():
        tokens = peer.forward_features((images - 0.5) / 0.5)
    assert tokens.shape[1] == 5, "four patches and the class token"
    assert torch.allclose(encoder(images), tokens.mean(1), atol=1e-5)


def test_the_grid_readout_lays_patches_side_by_side_row_by_row(images: torch.Tensor) -> None:
    encoder = build(readout="grid")
    with torch.no_grad():
        tokens = encoder.backbone.forward_features((images - 0.5) / 0.5)
    vectors = encoder(images)
    assert vectors.shape == (5, encoder.num_channels)
    for place in range(4):
        assert torch.allclose(vectors[:, 64 * place : 64 * (place + 1)], tokens[:, 1 + place], atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "readout", "channels"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "cls", 384),
        ("vit_base_patch16_224.orig_in21k_ft_in1k", "mean", 768),
        ("mobilenetv3_small_050", "pool", 1024),
        ("resnet18", "pool", 512),
        ("test_vit", "grid", 64 * 14 * 14),
    ],
)
def test_channels_are_known_before_the_encoder_is_built(backbone: str, readout: Any, channels: int) -> None:
    assert SliceEncoderConfig(backbone=backbone, readout=readout).resolve_channels(224) == channels


def test_it_stays_frozen_when_the_model_around_it_trains(images: torch.Tensor) -> None:
    encoder = build()
    before = encoder(images)
    torch.nn.Sequential(encoder).train()
    assert not encoder.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder(images.clone().requires_grad_()), before)


def test_the_batch_size_changes_no_vector(images: torch.Tensor) -> None:
    # Matrix products of another height may add in another order: a few float32 roundings of values around 1.
    assert torch.allclose(build(batch_size=2)(images), build(batch_size=5)(images), atol=1e-5)
    assert build()(images[:0]).shape == (0, 64)


def test_random_weights_depend_on_the_seed_alone(images: torch.Tensor) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = build(seed=4)
    assert torch.equal(torch.rand(3), expected), "building an encoder draws nothing from the global generator"
    torch.manual_seed(12)
    assert torch.equal(build(seed=4)(images), first(images))
    assert not torch.allclose(build(seed=5)(images), first(images), atol=1e-2)


def test_the_fingerprint_covers_pictures_readout_and_weights_but_not_their_source(
    weight_file: Callable[..., dict[str, str]],
) -> None:
    slices = SliceStackConfig(image_size=IMAGE_SIZE)
    fingerprint = build(seed=3).fingerprint(slices)
    others = [
        build(seed=4).fingerprint(slices),
        build(seed=3, readout="mean").fingerprint(slices),
        build(seed=3, std=(1.0, 1.0, 1.0)).fingerprint(slices),
        build(seed=3).fingerprint(SliceStackConfig(image_size=IMAGE_SIZE, fit="pad")),
    ]
    assert len({fingerprint, *others}) == 5
    assert build(seed=3, batch_size=1).fingerprint(slices) == fingerprint
    by_file = build(**weight_file(seed=3, num_classes=0, img_size=IMAGE_SIZE, global_pool=""))
    assert by_file.fingerprint(slices) == fingerprint


@pytest.mark.parametrize("num_classes", [0, 1000])
def test_a_file_with_its_hash_is_taken_whole(
    num_classes: int, weight_file: Callable[..., dict[str, str]], images: torch.Tensor
) -> None:
    given = weight_file(num_classes=num_classes, img_size=IMAGE_SIZE)
    torch.manual_seed(3)
    peer = timm.create_model("test_vit", num_classes=num_classes, img_size=IMAGE_SIZE).eval()
    with torch.no_grad():
        expected = peer.forward_features((images - 0.5) / 0.5)[:, 0]
    assert torch.allclose(build(**given)(images), expected, atol=1e-5)


def test_a_file_of_other_bytes_is_refused_by_its_hash(weight_file: Callable[..., dict[str, str]]) -> None:
    given = weight_file()
    path = Path(given["weights_file"])
    found = path.read_bytes()
    path.write_bytes(found[:-1] + bytes([found[-1] ^ 1]))
    with pytest.raises(ModelError, match=hashlib.sha256(path.read_bytes()).hexdigest()):
        build(**given)


@pytest.mark.parametrize("other", ["test_vit2", "test_resnet"])
def test_the_weights_of_another_backbone_are_refused(other: str, weight_file: Callable[..., dict[str, str]]) -> None:
    with pytest.raises(ModelError, match="does not hold the weights of test_vit"):
        build(**weight_file(other))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not_there"):
        build(weights="file", weights_file=str(tmp_path / "not_there.pth"), weights_sha256="0" * 64)


def test_a_position_table_of_another_size_is_resampled(
    weight_file: Callable[..., dict[str, str]], images: torch.Tensor
) -> None:
    given = weight_file(img_size=160)
    by_timm, by_hub = build(**given), build(**given, positions="hub")
    assert by_timm.backbone.pos_embed.shape[1] == 5
    assert not torch.allclose(by_timm(images), by_hub(images), atol=1e-4)


def test_the_hub_resampling_reads_a_ramp_at_its_own_scale() -> None:
    ramp = torch.arange(37.0).view(1, 37, 1, 1).expand(1, 37, 37, 1).reshape(1, -1, 1)
    table = torch.cat([torch.full((1, 1, 1), 99.0), ramp], dim=1)
    resampled = encoder_weights.resample_positions(table, 16)
    assert resampled[0, 0, 0].item() == 99.0
    # A scale of 16.1 / 37 reads row i at (i + 0.5) * 37 / 16.1 - 0.5; that of exact size would be 0.21 off at row 14.
    # This cubic (a = -0.75) bends a straight line by up to 0.05.
    rows = resampled[0, 1:, 0].view(16, 16)[:, 8]
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    assert torch.allclose(rows[1:-1], expected[1:-1], atol=0.06)


def test_the_hub_resampling_does_not_smooth() -> None:
    stripes = (torch.arange(37) % 2).float().view(1, 37, 1, 1).expand(1, 37, 37, 1).reshape(1, -1, 1)
    resampled = encoder_weights.resample_positions(torch.cat([torch.zeros(1, 1, 1), stripes], dim=1), 16)
    # Antialiased, stripes of one row would all but vanish (standard deviation below 0.1).
    assert resampled[0, 1:].std().item() > 0.3


def test_offline_a_name_without_cached_weights_fails_at_once_and_touches_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"model\.safetensors.*timm/test_vit\.r160_in1k") as caught:
        build(weights="timm")
    assert time.monotonic() - started < 3
    assert caught.value.fix is not None
    assert "weights_sha256" in caught.value.fix


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_args, **_options: time.sleep(30))
    monkeypatch.setattr(encoder_weights, "PROBE_TIMEOUT_S", 0.2)
    started = time.monotonic()
    with pytest.raises(ModelError, match="out of reach"):
        build(weights="timm")
    assert time.monotonic() - started < 3


def test_a_cached_file_serves_a_name_offline(
    monkeypatch: pytest.MonkeyPatch, weight_file: Callable[..., dict[str, str]], images: torch.Tensor
) -> None:
    given = weight_file()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_args, **_options: given["weights_file"])
    assert torch.equal(build(weights="timm")(images), build(**given)(images))


def test_an_encoder_without_its_weights_refuses_to_encode(images: torch.Tensor) -> None:
    config = SliceEncoderConfig(backbone="test_vit", weights="timm")
    empty = config.build(IMAGE_SIZE, load_weights=False)
    with pytest.raises(ModelError, match="without its weights"):
        empty(images)
    filled = build(seed=8)
    empty.load_state_dict(filled.state_dict())
    assert torch.equal(empty(images), filled(images))


def test_attention_maps_are_the_softmax_of_the_last_block(images: torch.Tensor) -> None:
    encoder = build()
    inputs = []
    attention = encoder.backbone.blocks[-1].attn
    handle = attention.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    before = encoder(images)
    handle.remove()
    maps = encoder.attention_maps(images)
    heads = attention.num_heads
    query, key, _ = attention.qkv(inputs[0]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.transpose(-2, -1) * key.shape[-1] ** -0.5, -1).mean(1)
    assert torch.allclose(maps.flatten(1), weights[:, 0, 1:], atol=1e-6)
    assert torch.allclose(maps.sum((1, 2)), 1 - weights[:, 0, 0], atol=1e-6)
    assert torch.equal(encoder(images), before), "afterwards the attention runs as before"


def test_a_readout_that_a_backbone_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match='readout "pool"'):
        build(backbone="test_resnet")
    with pytest.raises(ModelError, match="class token"):
        build(backbone="test_vit3")
    with pytest.raises(ModelError, match="no attention"):
        build(backbone="test_resnet", readout="pool").attention_maps(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))


def test_wrong_settings_say_what_is_wrong(images: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="vit_small_patch14_dinov2"):
        build(backbone="vit_smal_patch14_dinov2")
    with pytest.raises(ModelError, match="multiple of"):
        SliceEncoderConfig(backbone="test_vit").build(33)
    with pytest.raises(ModelError, match="another length"):
        build(channels=65)
    with pytest.raises(ModelError, match="do not fit"):
        build()(images[:, :, :-1])
    with pytest.raises(ConfigError, match="weights_sha256"):
        SliceEncoderConfig(weights="file", weights_file="x.pth")
    with pytest.raises(ConfigError, match='weights is "timm"'):
        SliceEncoderConfig(weights="timm", weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match="loaded tables"):
        SliceEncoderConfig(positions="hub")


def test_bfloat16_gives_nearly_the_same_vectors_under_a_fingerprint_of_its_own() -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full = SliceEncoderConfig(backbone="test_vit", readout="mean").build(32)
    half = SliceEncoderConfig(backbone="test_vit", readout="mean", precision="bfloat16").build(32)
    exact, near = full(images), half(images)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    # Products rounded to 2^-9, through a few layers.
    assert (near - exact).norm() < 0.03 * exact.norm()
    slices = SliceStackConfig(image_size=32)
    assert half.fingerprint(slices) != full.fingerprint(slices)
    assert half.hash_weights() == full.hash_weights()
    # Features that were made before there was a choice are found by what they were found by.
    assert "precision" not in full.describe()
    assert half.describe()["precision"] == "bfloat16"
