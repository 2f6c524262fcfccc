"""DinoAtten3D's loss: values known by hand, the edge cases, and each option."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neuroray.config import ConfigError
from neuroray.platform.models.dinoatten3d import DinoAtten3DLossConfig, dinoatten3d_loss
from neuroray.platform.models.errors import ModelError

EIGHT_AND_EIGHT = torch.tensor([0] * 8 + [1] * 8)


def measure(embedding: Tensor, labels: Tensor, **options: Any) -> dict[str, float]:
    logits = torch.zeros(len(labels), max(int(labels.max()) + 1, 2))
    terms = dinoatten3d_loss(logits, embedding, labels, DinoAtten3DLossConfig(**options))
    return {name: value.item() for name, value in terms.items()}


def test_collapsed_classes_score_ln_7_and_no_variance() -> None:
    embedding = torch.zeros(16, 128)
    embedding[:8, 0], embedding[8:, 1] = 3.0, 0.5
    terms = measure(embedding, EIGHT_AND_EIGHT)
    # Of the 15 others, 7 are alike; the 8 unlike weigh exp(-1 / 0.07) = 6e-7 each.
    assert terms["contrastive"] == pytest.approx(math.log(7), abs=2e-6)
    assert terms["variance"] == pytest.approx(0, abs=1e-12)
    assert terms["cross_entropy"] == pytest.approx(math.log(2), abs=1e-6)


def test_orthogonal_embeddings_score_ln_15_and_their_known_variance() -> None:
    terms = measure(torch.eye(16, 128) * 7, EIGHT_AND_EIGHT)
    assert terms["contrastive"] == pytest.approx(math.log(15), abs=1e-6)
    assert terms["variance"] == pytest.approx((1 - 1 / 8) / 128, abs=1e-9)
    assert terms["variance"] == pytest.approx(0.0068359, abs=1e-7)
    assert terms["loss"] == pytest.approx(math.log(2) + math.log(15) + 0.1 * 0.0068359, abs=1e-5)
    assert measure(torch.eye(16, 128), EIGHT_AND_EIGHT, variance_reduction="sum")["variance"] == pytest.approx(7 / 8)


def test_the_contrast_is_the_formula_written_out() -> None:
    embedding, labels, tau = torch.rand(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0]), 0.3
    z = embedding / embedding.norm(dim=1, keepdim=True)
    per_anchor = []
    for i in range(6):
        others = sum(math.exp(z[i] @ z[a] / tau) for a in range(6) if a != i)
        alike = [math.log(math.exp(z[i] @ z[p] / tau) / others) for p in range(6) if p != i and labels[p] == labels[i]]
        per_anchor.append(-sum(alike) / len(alike) if alike else 0.0)
    found = measure(embedding, labels, temperature=tau)["contrastive"]
    assert found == pytest.approx(sum(per_anchor) / 6, abs=1e-12)
    valid = measure(embedding, labels, temperature=tau, contrastive_average="valid")["contrastive"]
    assert valid == pytest.approx(sum(per_anchor) / 5, abs=1e-12)


def test_classes_of_one_add_nothing_to_the_variance_but_are_counted() -> None:
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    # Class 0 has variance 1/4 per dimension; class 1 is alone.
    assert measure(embedding, torch.tensor([0, 0, 1]))["variance"] == pytest.approx(0.25 / 2)


@pytest.mark.parametrize("average", ["all", "valid"])
@pytest.mark.parametrize("labels", [[0], [0, 1], [2, 0, 1]])
def test_without_others_of_a_class_the_contrast_is_zero(labels: list[int], average: Any) -> None:
    embedding = torch.rand(len(labels), 5, requires_grad=True)
    config = DinoAtten3DLossConfig(contrastive_average=average)
    terms = dinoatten3d_loss(torch.zeros(len(labels), 3), embedding, torch.tensor(labels), config)
    terms["loss"].backward()
    assert terms["contrastive"].item() == 0
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


@pytest.mark.parametrize("zero_rows", [[0], [0, 1, 2, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_of_zeros_give_finite_losses_and_modest_gradients(zero_rows: list[int], dtype: torch.dtype) -> None:
    embedding = torch.rand(4, 5).to(dtype)
    embedding[zero_rows] = 0
    embedding.requires_grad_()
    terms = dinoatten3d_loss(torch.zeros(4, 2), embedding, torch.tensor([0, 0, 1, 1]), DinoAtten3DLossConfig())
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert embedding.grad is not None
    assert embedding.grad.abs().max() < 100


def test_extremely_sharp_temperatures_stay_finite() -> None:
    terms = measure(torch.rand(8, 5), torch.tensor([0, 1] * 4), temperature=1e-4)
    assert math.isfinite(terms["contrastive"])


@pytest.mark.parametrize("name", ["cross_entropy", "contrastive", "variance"])
def test_each_term_can_be_switched_off(name: str) -> None:
    torch.manual_seed(0)
    logits, embedding, labels = torch.randn(8, 2), torch.rand(8, 5), torch.tensor([0, 1] * 4)
    full = dinoatten3d_loss(logits, embedding, labels, DinoAtten3DLossConfig(variance_weight=1.0))
    options = {"variance_weight": 1.0, f"{name}_weight": 0.0}
    without = dinoatten3d_loss(logits, embedding, labels, DinoAtten3DLossConfig(**options))
    assert without[name].item() == 0
    assert without["loss"].item() == pytest.approx((full["loss"] - full[name]).item(), abs=1e-6)


def test_class_weights_and_label_smoothing_act_on_the_cross_entropy() -> None:
    logits, embedding, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.rand(2, 5), torch.tensor([0, 1])
    hit, even = math.log(1 + math.exp(-2)), math.log(2)
    config = DinoAtten3DLossConfig(class_weights=(1.0, 3.0))
    weighted = dinoatten3d_loss(logits, embedding, labels, config)["cross_entropy"].item()
    assert weighted == pytest.approx((hit + 3 * even) / 4, abs=1e-6)
    config = DinoAtten3DLossConfig(label_smoothing=0.2)
    smoothed = dinoatten3d_loss(logits, embedding, labels, config)["cross_entropy"].item()
    assert smoothed == pytest.approx((0.9 * hit + 0.1 * (hit + 2) + even) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 2], "no class"), ([-1, 0], "no class"), ([0], "not of one batch"), ([], "not of one batch")],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], words: str) -> None:
    given = torch.tensor(labels, dtype=torch.long)
    with pytest.raises(ModelError, match=words):
        dinoatten3d_loss(torch.zeros(2, 2), torch.rand(2, 5), given, DinoAtten3DLossConfig())


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="batch of nothing"):
        dinoatten3d_loss(torch.zeros(0, 2), torch.zeros(0, 5), torch.zeros(0).long(), DinoAtten3DLossConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"variance_weight": -1.0},
        {"cross_entropy_weight": 0.0, "contrastive_weight": 0.0, "variance_weight": 0.0},
        {"label_smoothing": 1.0},
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DinoAtten3DLossConfig(**options)
