"""DinoAtten3D: the model contract for the whole model and for its head, and the facts of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn

from neuroray.config import ConfigError
from neuroray.platform.models import MODELS
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig, DinoAtten3DHead
from neuroray.platform.models.dinoatten3d.weights import from_released
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig

# The second bias adds the same to every slice's score, and a softmax does not see that.
INSENSITIVE = "attention.score.bias"


def small_config(**changes: Any) -> DinoAtten3DConfig:
    parts = {
        "slices": SliceStackConfig(num_slices=7, image_size=32),
        "encoder": SliceEncoderConfig(backbone="test_vit"),
        "hidden": 5,
        "embedding": (9, 6),
        "num_classes": 3,
    }
    return DinoAtten3DConfig(**{**parts, **changes})


class TestDinoAtten3D(ModelContract):
    insensitive = frozenset({f"head.{INSENSITIVE}"})

    def make_config(self) -> DinoAtten3DConfig:
        return small_config()

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        # Five slices for seven places, voxels of 1 x 1 x 3 mm; smooth, so that pictures differ in more than noise.
        coarse = torch.rand(batch, 1, 5, 6, 3, generator=generator)
        volume = nn.functional.interpolate(coarse, (40, 48, 5), mode="trilinear")[:, 0]
        return {"volume": volume, "spacing_mm": torch.tensor([[1.0, 1.0, 3.0]]).expand(batch, 3)}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs["logits"], torch.tensor([0, 1, 2]))


class TestDinoAtten3DHead(ModelContract):
    insensitive = frozenset({INSENSITIVE})

    def make_config(self) -> DinoAtten3DConfig:
        return small_config(gated=True, feature_dropout=0.1, embedding_dropout=0.1)

    def build(self, config: DinoAtten3DConfig) -> DinoAtten3DHead:
        return config.build_head()

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        mask = torch.rand(batch, 7, generator=generator) > 0.3
        mask[:, 3] = True
        return {"features": torch.randn(batch, 7, 64, generator=generator), "mask": mask}

    def find_blocks(self, model: nn.Module) -> list[str]:
        return ["embedding.0", "embedding.1"]

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs["logits"], torch.tensor([0, 1, 2]))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def head() -> DinoAtten3DHead:
    return small_config().build_head().eval()


def test_the_registered_defaults_have_the_papers_sizes() -> None:
    head = MODELS["dinoatten3d"]().build_head()
    assert count(head.attention) == 24_705
    assert count(head.embedding) == 131_456
    assert count(head.classifier) == 258


def test_the_head_computes_the_papers_formula(head: DinoAtten3DHead) -> None:
    features = torch.randn(2, 7, 64)
    output = head(features)
    attention = head.attention
    for volume in range(2):
        scores = torch.stack([attention.score(torch.tanh(attention.project(z))) for z in features[volume]])
        weights = torch.softmax(scores.flatten(), 0)
        pooled = sum(weight * z for weight, z in zip(weights, features[volume], strict=True))
        first, second = head.embedding
        embedding = second(first(pooled).relu()).relu()
        assert torch.allclose(output.attention[volume], weights, atol=1e-6)
        assert torch.allclose(output.embedding[volume], embedding, atol=1e-6)
        assert torch.allclose(output.logits[volume], head.classifier(embedding), atol=1e-6)


def test_the_order_of_slices_does_not_change_the_answer(head: DinoAtten3DHead) -> None:
    features, order = torch.randn(2, 7, 64), torch.randperm(7)
    plain, shuffled = head(features), head(features[:, order])
    assert torch.allclose(shuffled.logits, plain.logits, atol=1e-6)
    assert torch.allclose(shuffled.attention, plain.attention[:, order], atol=1e-6)


def test_masked_slices_have_no_influence(head: DinoAtten3DHead) -> None:
    features = torch.randn(2, 7, 64)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1]] * 2, dtype=torch.bool)
    kept = head(features[:, mask[0]])
    features[:, ~mask[0]] = torch.nan
    output = head(features, mask)
    assert torch.allclose(output.logits, kept.logits, atol=1e-6)
    assert (output.attention[:, ~mask[0]] == 0).all()


def test_a_short_volume_answers_like_its_own_slices() -> None:
    model = small_config().build().eval()
    volume = torch.rand(32, 32, 4)
    features, mask, index, _ = model.encode(volume)
    assert mask.tolist() == [False, True, True, True, True, False, False]
    assert index.tolist() == [-1, 0, 1, 2, 3, -1, -1]
    assert torch.allclose(model(volume[None]).logits, model.head(features[None, 1:5]).logits, atol=1e-6)


def test_spacing_reaches_the_pictures() -> None:
    model = small_config().build().eval()
    volume = torch.rand(1, 32, 32, 7)
    plain = model(volume).logits
    assert torch.equal(model(volume, spacing_mm=(2.0, 2.0, 9.0)).logits, plain)
    assert not torch.equal(model(volume, spacing_mm=(2.0, 3.0, 9.0)).logits, plain)


def test_a_nan_voxel_changes_one_pixel_and_no_more() -> None:
    model = small_config().build().eval()
    volume = torch.rand(1, 32, 32, 7)
    volume[0, 0, 0, 0] = torch.nan
    assert all(value.isfinite().all() for value in model(volume))


def test_no_gradient_reaches_the_encoder() -> None:
    model = small_config().build().train()
    model(torch.rand(2, 32, 32, 7)).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert not model.encoder.training


def test_scopes_name_what_learns(head: DinoAtten3DHead) -> None:
    assert sum(parameter.numel() for parameter in head.trainable_parameters("all")) == count(head)
    released = head.trainable_parameters("released")
    assert {id(parameter) for parameter in released} == {id(parameter) for parameter in head.embedding.parameters()}


def test_dropout_acts_in_training_only() -> None:
    head = small_config(feature_dropout=0.5, embedding_dropout=0.5).build_head()
    features = torch.randn(2, 7, 64)
    assert not torch.equal(head.train()(features).logits, head(features).logits)
    assert torch.equal(head.eval()(features).logits, head(features).logits)


def test_standardising_undoes_any_scale_and_offset_of_a_channel() -> None:
    torch.manual_seed(0)
    plain = small_config(standardise=True).build_head().eval()
    torch.manual_seed(0)
    stretched = small_config(standardise=True).build_head().eval()
    scans = torch.randn(4, 7, 64)
    scale, offset = torch.rand(64) * 1e-3 + 1e-4, torch.randn(64)
    plain.fit_scale(scans)
    stretched.fit_scale(scans * scale + offset)
    # The offset takes three or four of float32's seven digits from channels that vary by 1e-3 to 1e-4.
    assert torch.allclose(stretched(scans * scale + offset).logits, plain(scans).logits, atol=5e-3)
    assert not torch.allclose(stretched(scans).logits, plain(scans).logits, atol=0.1)


def test_constant_channels_stay_finite_and_statistics_travel_with_the_weights() -> None:
    head = small_config(standardise=True).build_head().eval()
    scans = torch.randn(4, 7, 64)
    scans[..., 5] = 3.0
    head.fit_scale(scans)
    expected = head(scans).logits
    assert expected.isfinite().all()
    copy = small_config(standardise=True).build_head().eval()
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy(scans).logits, expected)


def test_a_head_that_does_not_standardise_takes_no_statistics(head: DinoAtten3DHead) -> None:
    with pytest.raises(ModelError, match="nothing to standardise"):
        head.fit_scale(torch.randn(2, 7, 64))
    with pytest.raises(ModelError, match="0 scans"):
        small_config(standardise=True).build_head().fit_scale([])


def test_a_head_is_built_without_timm_where_the_channels_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert DinoAtten3DConfig(encoder=SliceEncoderConfig(channels=384)).build_head().num_channels == 384


def test_released_weights_are_told_by_their_shapes() -> None:
    config = DinoAtten3DConfig(encoder=SliceEncoderConfig(channels=384))
    theirs, ours = config.build_head().eval(), config.build_head().eval()
    renamed = {f"layer.{place}": tensor for place, tensor in enumerate(reversed(theirs.state_dict().values()))}
    ours.load_state_dict(from_released({**renamed, "backbone.cls_token": torch.zeros(1, 1, 384)}, ours))
    features = torch.randn(2, 5, 384)
    assert torch.equal(ours(features).logits, theirs(features).logits)
    with pytest.raises(ModelError, match="2 such tensors"):
        from_released({**renamed, "second.classifier": torch.zeros(2, 128)}, ours)
    with pytest.raises(ModelError, match="0 such tensors"):
        from_released(dict(list(renamed.items())[1:]), ours)


@pytest.mark.parametrize(
    ("features", "mask", "words"),
    [
        (torch.zeros(2, 7, 63), None, "64 channels"),
        (torch.zeros(7, 64), None, "64 channels"),
        (torch.zeros(2, 7, 64), torch.ones(2, 6, dtype=torch.bool), "mask does not fit"),
        (torch.zeros(2, 7, 64), torch.tensor([[True] * 7, [False] * 7]), r"batch rows \[1\]"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    features: Tensor, mask: Tensor | None, words: str, head: DinoAtten3DHead
) -> None:
    with pytest.raises(ModelError, match=words):
        head(features, mask)


def test_volumes_that_do_not_fit_are_refused() -> None:
    model = small_config().build()
    with pytest.raises(ModelError, match="batch x y z"):
        model(torch.rand(32, 32, 7))
    with pytest.raises(ModelError, match="spacing_mm does not fit"):
        model(torch.rand(2, 32, 32, 7), spacing_mm=torch.ones(3, 3))


@pytest.mark.parametrize("changes", [{"num_classes": 1}, {"embedding": ()}, {"hidden": 0}, {"feature_dropout": 1.0}])
def test_sizes_that_make_no_model_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        small_config(**changes)
