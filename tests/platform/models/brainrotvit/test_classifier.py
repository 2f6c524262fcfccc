"""The first stage: the model contract in all three ways of tuning, labels, counts, and the encoder it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import ConfigError
from neuroray.platform.models.brainrotvit.classifier import (
    AGE_SEX_CLASSES,
    SliceClassifier,
    SliceClassifierConfig,
    age_sex_class,
)
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.dora import DoraLinear
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.encoder_weights import check_file
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig


def small_config(**changes: Any) -> SliceClassifierConfig:
    parts = {
        "slices": ResampledStackConfig(num_slices=5, image_size=32, sampling="spread", normalisation="volume"),
        "encoder": SliceEncoderConfig(backbone="test_vit", readout="mean"),
    }
    return SliceClassifierConfig(**{**parts, **changes})


class TestDoraClassifier(ModelContract):
    tune = "dora"

    def make_config(self) -> SliceClassifierConfig:
        return small_config(tune=self.tune, rank=3)

    def build(self, config: SliceClassifierConfig) -> SliceClassifier:
        model = config.build()
        for module in model.modules():
            if isinstance(module, DoraLinear):
                for update in module.updates:
                    # At first B is 0, and A then has no gradient.
                    update.up.data += torch.linspace(-0.1, 0.1, update.up.numel()).view_as(update.up)
        return model

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {"images": torch.rand(batch, 1, 32, 32, generator=generator)}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(outputs["logits"], torch.tensor([0, 1, 19]))

    def find_blocks(self, model: nn.Module) -> list[str]:
        return [f"backbone.blocks.{index}" for index in range(len(model.backbone.blocks))]


class TestHeadClassifier(TestDoraClassifier):
    tune = "head"


class TestFullClassifier(TestDoraClassifier):
    tune = "full"


@pytest.mark.parametrize(
    ("age_years", "sex", "expected"),
    [(8.9, "M", "000M"), (19.99, "F", "010F"), (20.0, "M", "020M"), (96.0, "F", "090F"), (104.0, "M", "090M")],
)
def test_labels_are_decade_and_sex(age_years: float, sex: str, expected: str) -> None:
    assert age_sex_class(age_years, sex) == expected
    assert expected in AGE_SEX_CLASSES


@pytest.mark.parametrize(("age_years", "sex"), [(-1.0, "M"), (float("nan"), "F"), (30.0, "")])
def test_people_without_age_or_sex_have_no_label(age_years: float, sex: str) -> None:
    with pytest.raises(ModelError, match="no age and sex"):
        age_sex_class(age_years, sex)


def test_twenty_classes_in_sorted_order() -> None:
    assert len(AGE_SEX_CLASSES) == 20
    assert list(AGE_SEX_CLASSES) == sorted(AGE_SEX_CLASSES)


def test_dora_on_vit_base_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        model = SliceClassifierConfig(encoder=SliceEncoderConfig(backbone="vit_base_patch16_224")).build()
    learned = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    classifier = sum(count for name, count in learned.items() if name.startswith("classifier."))
    # 12 blocks of 2 (8 x 768 x 2) factors and 2 x 768 magnitudes; 768 x 20 + 20.
    assert (sum(learned.values()) - classifier, classifier) == (313_344, 15_380)


def test_adapters_sit_on_queries_and_values() -> None:
    model = small_config().build()
    width = model.backbone.num_features
    for block in model.backbone.blocks:
        assert block.attn.qkv.ranges == ((0, width), (2 * width, 3 * width))


@pytest.mark.parametrize("tune", ["dora", "head", "full"])
def test_the_encoder_that_it_becomes_gives_the_tokens_that_it_saw(tune: str, tmp_path: Path) -> None:
    config = small_config(tune=tune)
    model = TestDoraClassifier().build(config).eval()
    path = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(model.encoder_state(), path)
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    check_file(path, digest)
    taken = SliceEncoderConfig(
        backbone="test_vit", readout="mean", weights="file", weights_file=str(path), weights_sha256=digest
    )
    encoder = taken.build(32)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.backbone.forward_features((images.expand(-1, 3, -1, -1) - 0.5) / 0.5)
    # Adapted rows are summed in another order once they are merged.
    torch.testing.assert_close(encoder(images.expand(-1, 3, -1, -1)), tokens.mean(1), rtol=1e-4, atol=1e-5)
    # The classifier reads the class token.
    torch.testing.assert_close(model(images).logits, model.classifier(tokens[:, 0]))


def test_backbones_without_a_class_token_are_refused() -> None:
    with pytest.raises(ModelError, match="no class token"):
        small_config(encoder=SliceEncoderConfig(backbone="resnet10t.c3_in1k", readout="pool")).build()


def test_adapters_without_a_rank_are_refused() -> None:
    with pytest.raises(ConfigError, match="make no adapter"):
        small_config(rank=0)
