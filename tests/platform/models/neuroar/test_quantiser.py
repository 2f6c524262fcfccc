"""The multi-scale quantiser: numbers of VAR's own code, the two ways in which known quantisers fail, ranks, batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from contracts.neuroar_ranks import observe_share
from contracts.ranks import run_ranks
from torch import Tensor

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.codebook import Codebook, LevelSizes
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, measure_usage
from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig, halve

NUM_CODES, NUM_TOKENS = 2048, 1320


def small(**changes: Any) -> MultiScaleQuantiser:
    torch.manual_seed(0)
    return MultiScaleQuantiser(QuantiserConfig(**{"num_codes": 40, "code_dim": 5, "num_scales": 3, **changes}))


@pytest.fixture
def oracle() -> tuple[MultiScaleQuantiser, Tensor]:
    """Inputs in closed form, for which VAR's quantiser was run with a bilinear in place of its bicubic."""
    scales = tuple((1, size, size) for size in (1, 2, 3, 4))
    quantiser = small(num_codes=16, code_dim=4, num_scales=4, scales=scales, update="gradient").double()
    v, c = torch.arange(16.0)[:, None], torch.arange(4.0)
    quantiser.codebook.codes.data = 0.8 * torch.cos(1.1 * v + 0.6 * c)
    o, i, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (4, 4, 3, 3)), indexing="ij")
    for k, refiner in enumerate(quantiser.refiners):
        refiner.conv.weight.data = torch.zeros(4, 4, 3, 3, 3)
        refiner.conv.weight.data[:, :, 1] = 0.05 * torch.sin(o + 2 * i + 3 * y + 5 * x + 0.1 * k)
        refiner.conv.bias.data = 0.01 * (torch.arange(4.0) + 1)
    c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (4, 4, 4)), indexing="ij")
    return quantiser, torch.sin(0.7 * c + 0.3 * y + 0.5 * x + 0.1)[None, :, None]


ORACLE_TOKENS = [
    *[0, 10, 6, 0, 1],
    *[4, 0, 12, 10, 6, 12, 0, 12, 1],
    *[15, 15, 15, 15, 12, 6, 15, 3, 15, 12, 12, 7, 15, 9, 1, 13],
]


def test_tokens_sums_and_errors_are_those_of_vars_code(oracle: tuple[MultiScaleQuantiser, Tensor]) -> None:
    quantiser, latent = oracle
    tokens = quantiser.encode(latent)
    assert tokens[0].tolist() == ORACLE_TOKENS
    sums = list(quantiser.accumulate(tokens, (1, 4, 4)))
    # The numbers were written down to eight digits.
    assert [float(one.sum()) for one in sums] == pytest.approx([13.579326, 21.304924, 28.087833, 27.272528], rel=1e-6)
    errors = [float((one - latent).square().mean()) for one in sums]
    assert errors == pytest.approx([0.25957707, 0.08868235, 0.02216136, 0.03361374], rel=1e-5)


def test_what_the_next_scale_is_told_from_is_that_of_vars_code(oracle: tuple[MultiScaleQuantiser, Tensor]) -> None:
    inputs = oracle[0].teacher_inputs(torch.tensor([ORACLE_TOKENS]), (1, 4, 4))[0]
    assert inputs.shape == (29, 4)
    assert float(inputs.sum()) == pytest.approx(43.564728, rel=1e-6)
    assert inputs[0].tolist() == pytest.approx([0.399658, 0.342804, 0.168170, -0.064660], abs=1e-6)
    assert inputs[-1].tolist() == pytest.approx([0.781039, 0.255911, -0.347479, -0.811256], abs=1e-6)


def test_loss_and_its_gradients_are_those_of_vars_code(oracle: tuple[MultiScaleQuantiser, Tensor]) -> None:
    quantiser, latent = oracle
    latent.requires_grad_(True)
    loss = quantiser.train()(latent).loss
    assert float(loss.detach()) == pytest.approx(0.12626079, rel=1e-6)
    loss.sum().backward()
    assert float(latent.grad.abs().sum()) == pytest.approx(0.09676411, rel=1e-5)
    assert float(quantiser.codebook.codes.grad.abs().sum()) == pytest.approx(0.20701820, rel=1e-5)


def test_in_training_the_gradient_passes_as_if_nothing_were_quantised() -> None:
    latent = torch.randn(2, 5, 3, 4, 2, requires_grad=True)
    weights = torch.randn(2, 5, 3, 4, 2)
    (small().train()(latent).latent * weights).sum().backward()
    assert torch.equal(latent.grad, weights)


def test_scales_are_halves_rounded_up_and_make_1536_tokens() -> None:
    scales = halve((10, 12, 11), 5)
    assert scales == ((1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 6, 6), (10, 12, 11))
    assert sum(math.prod(scale) for scale in scales) == 1536


@pytest.mark.parametrize(
    ("refiners", "scales", "chosen"), [(4, 5, [0, 1, 2, 2, 3]), (5, 5, [0, 1, 2, 3, 4]), (4, 4, [0, 1, 2, 3])]
)
def test_scales_choose_refiners_as_vars_do(refiners: int, scales: int, chosen: list[int]) -> None:
    config = QuantiserConfig(num_refiners=refiners)
    assert [config.choose_refiner(index, scales) for index in range(scales)] == chosen


def test_scales_that_end_elsewhere_are_refused() -> None:
    with pytest.raises(ConfigError, match="the last scale is not the latent grid"):
        small(scales=((1, 1, 1), (3, 3, 3)))(torch.randn(1, 5, 4, 4, 4))


def test_a_scale_of_the_grids_own_size_is_not_interpolated() -> None:
    latent = torch.randn(1, 5, 3, 2, 4)
    quantiser = small(scales=((3, 2, 4),), num_refiners=1, refiner_share=0.0)
    flat = latent.flatten(2).transpose(1, 2)
    assert torch.equal(quantiser.encode(latent), torch.cdist(flat, quantiser.codebook.codes).argmin(-1))
    nearest = quantiser.codebook.codes[quantiser.encode(latent)[0]].T.view_as(latent[0])
    assert torch.equal(quantiser.eval()(latent).latent[0], nearest)


def test_the_angle_ignores_lengths_and_codes_are_added_as_they_are() -> None:
    quantiser = small(distance="cosine", scales=((2, 1, 1),), num_refiners=1, refiner_share=0.0)
    directions = torch.nn.functional.normalize(quantiser.codebook.codes, dim=1)
    latent = 50 * directions[[7, 31]].T.reshape(1, 5, 2, 1, 1)
    assert quantiser.encode(latent).tolist() == [[7, 31]]
    assert torch.equal(quantiser.eval()(latent).latent[0, :, 1, 0, 0], quantiser.codebook.codes[31])


def test_tokens_decode_to_the_latent_that_they_came_from() -> None:
    quantiser, latent = small().eval(), torch.randn(3, 5, 5, 6, 3)
    quantised = quantiser(latent)
    assert torch.equal(quantiser.encode(latent), quantised.tokens)
    # One volume at a time against three: convolutions may add in another order.
    torch.testing.assert_close(quantiser.decode(quantised.tokens, (5, 6, 3)), quantised.latent, rtol=0, atol=1e-6)


def test_a_batch_changes_no_bit_of_tokens_and_latents() -> None:
    quantiser, latent = small().eval(), torch.randn(7, 5, 4, 6, 3)
    tokens = quantiser.encode(latent)
    decoded = quantiser.decode(tokens, (4, 6, 3))
    for row in range(7):
        assert torch.equal(quantiser.encode(latent[row : row + 1])[0], tokens[row])
        assert torch.equal(quantiser.decode(tokens[row : row + 1], (4, 6, 3))[0], decoded[row])


@pytest.mark.parametrize(
    ("tokens", "words"), [([[1, 2, 3]], "tokens do not fit"), ([[40]], "no codes"), ([[-1]], "no codes")]
)
def test_tokens_of_another_length_or_codebook_are_refused(tokens: list[list[int]], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        small().decode(torch.tensor(tokens), (4, 4, 4))


class CountsFromNothing:
    """The running means of a popular package: counts start at 0, sums at the codes, nothing is revived."""

    def __init__(self, codes: Tensor, decay: float) -> None:
        self.codes, self.sums, self.sizes, self.decay = codes, codes.clone(), torch.zeros(len(codes)), decay

    def step(self, vectors: Tensor) -> Tensor:
        found = torch.cdist(vectors, self.codes).argmin(1)
        counts = torch.bincount(found, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, found, vectors)
        self.sizes = self.decay * self.sizes + (1 - self.decay) * counts
        self.sums = self.decay * self.sums + (1 - self.decay) * sums
        total = self.sizes.sum()
        smoothed = (self.sizes + 1e-5) / (total + len(self.codes) * 1e-5) * total
        self.codes = self.sums / smoothed[:, None]
        return found


def test_counts_that_start_at_nothing_lose_the_codebook_in_three_steps_and_ours_do_not() -> None:
    vectors, codes = torch.randn(1, NUM_TOKENS, 32), torch.randn(NUM_CODES, 32)
    faulty, ours = CountsFromNothing(codes.clone(), 0.99), Codebook(QuantiserConfig())
    ours.codes.copy_(codes)
    ours.sums.copy_(codes)
    faulty_used, ours_used = [], []
    for _ in range(4):
        found = ours.find_nearest(vectors)
        ours.observe(vectors, found, [NUM_TOKENS])
        ours_used.append(len(found.unique()))
        faulty_used.append(len(faulty.step(vectors[0]).unique()))
    assert faulty_used[0] == ours_used[0] > 300  # the same start
    assert faulty_used[3] < 10
    assert ours_used[3] > 0.95 * ours_used[0]
    assert ours.codes.norm(dim=1).max() < 12


def test_the_faulty_rule_is_the_one_that_was_measured() -> None:
    faulty = CountsFromNothing(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), 0.5)
    faulty.step(torch.tensor([[0.1, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert faulty.codes[3, 0] > 1e5


def test_an_unused_code_stays_where_it_is_however_long() -> None:
    book = Codebook(QuantiserConfig(num_codes=3, code_dim=2, decay=0.5, revive_below=0.0))
    before = book.codes.clone()
    for _ in range(300):  # a half to this power is below what a float holds
        book.observe(before[:1][None], torch.tensor([[0]]), [1])
    assert torch.equal(book.codes[1:], before[1:])
    assert book.codes.isfinite().all()


def make_dying(revive_below: float = 0.5) -> tuple[Codebook, Tensor]:
    book = Codebook(QuantiserConfig(num_codes=4, code_dim=3, revive_below=revive_below))
    book.sizes.copy_(torch.tensor([40.0, 40.0, 40.0, 0.5]))
    book.sums.copy_(book.codes * book.sizes[:, None])
    return book, torch.randn(1, 30, 3) * 5


def test_a_dead_code_is_set_to_a_vector_of_the_batch_with_the_count_of_a_mean_code() -> None:
    book, vectors = make_dying()
    book.observe(vectors, torch.zeros(1, 30, dtype=torch.int64), [30])
    assert (vectors[0] == book.codes[3]).all(1).any()
    mean = (3 * 0.99 * 40 + 0.99 * 0.5 + 0.01 * 30) / 4
    assert float(book.sizes[3]) == pytest.approx(mean, rel=1e-6)


def test_a_revived_code_does_not_jump_at_its_next_update() -> None:
    book, vectors = make_dying()
    book.observe(vectors, torch.zeros(1, 30, dtype=torch.int64), [30])
    revived = book.codes[3].clone()
    # A sum that forgets the count, as a known quantiser's does, is worth a code many times as short or long.
    faulty_sum, size = revived.clone(), book.sizes[3].clone()
    book.observe(revived[None, None], torch.tensor([[3]]), [1])
    torch.testing.assert_close(book.codes[3], revived, rtol=1e-5, atol=0)
    faulty = (0.99 * faulty_sum + 0.01 * revived) / (0.99 * size + 0.01)
    assert not 0.2 < float(faulty.norm() / revived.norm()) < 5


def test_a_code_that_is_used_at_times_is_left_alone() -> None:
    book, vectors = make_dying(revive_below=0.01)
    book.num_recent.fill_(4)  # its scale has had all the codes already
    before = book.codes[3].clone()
    book.observe(vectors, torch.zeros(1, 30, dtype=torch.int64), [30])
    assert torch.equal(book.codes[3], before)


def test_codes_start_from_what_the_scales_look_up_each_scale_as_often() -> None:
    quantiser = small(num_codes=12, num_scales=2).train()
    latent = torch.randn(4, 5, 2, 2, 2) + torch.tensor([100.0, 0, 0, 0, 0]).view(1, 5, 1, 1, 1)
    quantiser(latent)
    # The coarse scale looks up what is near 100, the fine one what its refiner has left of it.
    assert int((quantiser.codebook.codes[:, 0] > 90).sum()) >= 3  # of 4 among 36 vectors
    assert int((quantiser.codebook.codes[:, 0] < 90).sum()) >= 4
    assert len(quantiser.eval().encode(latent).unique()) >= 8


def test_scales_of_equal_weight_keep_codes_for_the_coarsest_where_places_of_equal_weight_do_not() -> None:
    perplexity = {}
    for equal in (False, True):
        generator = torch.Generator().manual_seed(5)
        book = Codebook(QuantiserConfig(num_codes=16, code_dim=4, decay=0.8, equal_scales=equal, revive_below=0.0))
        # A scale of one place beside one of 60, both spread alike, about other centres.
        coarse = torch.randn(8, 1, 4, generator=generator) + torch.tensor([1.5, 0, 0, 0])
        vectors = torch.cat([coarse, torch.randn(8, 60, 4, generator=generator)], 1)
        book.start(vectors, [1, 60])
        for _ in range(40):
            book.observe(vectors, book.find_nearest(vectors), [1, 60])
        counts = torch.bincount(book.find_nearest(coarse).flatten(), minlength=16) / 8
        perplexity[equal] = float(torch.exp(-(counts * counts.clamp_min(1e-9).log()).sum()))
    assert perplexity[True] > 6  # of 8 vectors
    assert perplexity[False] < perplexity[True] - 1


def test_a_scale_of_one_place_gets_its_share_of_codes_from_many_batches() -> None:
    generator = torch.Generator().manual_seed(2)
    config = QuantiserConfig(num_codes=64, code_dim=4, decay=0.9, num_scales=2, equal_scales=True)
    book, coarse = Codebook(config), torch.randn(30, 1, 4, generator=generator) + 3
    fine = torch.randn(30, 40, 4, generator=generator)
    for step in range(45):
        rows = [(2 * step) % 30, (2 * step + 1) % 30]
        vectors = torch.cat([coarse[rows], fine[rows]], 1)
        if step == 0:
            book.start(vectors, [1, 40])  # of the first scale two vectors alone
        book.observe(vectors, book.find_nearest(vectors), [1, 40])
    # Of 30 brains each has a code to itself, or shares it with one or two.
    assert len(book.find_nearest(coarse).unique()) > 20
    assert len(book.find_nearest(fine).unique()) > 20


def test_what_is_remembered_is_of_all_scales_and_the_newest() -> None:
    book = Codebook(QuantiserConfig(num_codes=8, code_dim=1, num_scales=2))
    for step in range(5):
        vectors = torch.cat([torch.full((2, 1, 1), 100.0 + step), torch.full((2, 20, 1), float(step))], 1)
        book.observe(vectors, torch.zeros(2, 21, dtype=torch.int64), [1, 20])
    assert sorted(book.recent[0, :, 0].tolist()) == [101.0, 101.0, 102.0, 102.0, 103.0, 103.0, 104.0, 104.0]
    assert set(book.recent[1, :, 0].tolist()) == {4.0}


def test_counts_of_scales_of_equal_weight_are_one_on_average() -> None:
    book = Codebook(QuantiserConfig(num_codes=2, code_dim=1, decay=0.5, equal_scales=True, revive_below=0.0))
    book.codes.copy_(torch.tensor([[0.0], [1.0]]))
    book.sums.copy_(book.codes)
    book.observe(torch.tensor([[[0.0], [1.0], [1.0], [2.0]]]), torch.tensor([[0, 1, 1, 1]]), [1, 3])
    # The only vector of the first scale counts as the three of the second: 2 and 3 times 2/3.
    torch.testing.assert_close(book.sizes, torch.tensor([0.5 + 0.5 * 2, 0.5 + 0.5 * 2]))
    torch.testing.assert_close(book.codes[1, 0], torch.tensor((0.5 * 1 + 0.5 * 4 * 2 / 3) / 1.5))


def test_vectors_that_are_no_numbers_leave_the_codebook_as_it_is() -> None:
    book = Codebook(QuantiserConfig(num_codes=4, code_dim=3))
    before = {name: value.clone() for name, value in book.state_dict().items()}
    vectors = torch.full((1, 2, 3), float("nan"))
    book.start(vectors, [2])
    book.observe(vectors, torch.zeros(1, 2, dtype=torch.int64), [2])
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_two_ranks_with_a_part_each_move_the_codebook_as_one_with_all() -> None:
    latent = torch.randn(3, 5, 4, 4, 2)
    expected = observe_share(latent)
    for rank, found in enumerate(run_ranks(observe_share, latent)):
        assert found["num_updates"] == expected["num_updates"] == 6
        for name in ("codes", "sizes", "sums"):
            # Sums are added in another order.
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=f"{name}, rank {rank}")


def test_rows_that_do_not_count_leave_no_trace_in_the_codebook() -> None:
    latent = torch.randn(2, 5, 4, 4, 2)
    alone, beside = small().train(), small().train()
    for _ in range(2):
        alone(latent[:1])
        beside(latent, counted=torch.tensor([True, False]))
    # Convolutions of one volume and of two may add in another order.
    torch.testing.assert_close(alone.codebook.codes, beside.codebook.codes, rtol=1e-5, atol=1e-6)


def test_in_evaluation_nothing_moves() -> None:
    quantiser = small().eval()
    before = quantiser.codebook.codes.clone()
    quantiser(torch.randn(2, 5, 4, 4, 2))
    assert torch.equal(quantiser.codebook.codes, before)


def test_usage_and_perplexity_are_counted_by_scale() -> None:
    tokens = torch.tensor([[0, 1, 1, 1, 1], [0, 2, 3, 2, 3]])
    whole, used, perplexities = measure_usage(tokens, [1, 4], num_codes=8)
    assert whole == 4 / 8
    assert used == [1 / 8, 3 / 8]
    # One code: 1. Shares of a half and two quarters: an entropy of 1.5 bits.
    assert perplexities == pytest.approx([1.0, 2**1.5])


def test_without_the_finest_scales_a_volume_is_the_sum_of_those_before() -> None:
    torch.manual_seed(0)
    config = QuantiserConfig(num_codes=12, code_dim=4, num_scales=3, scale_dropout=0.6, scales_kept=1, decay=0.9)
    quantiser = MultiScaleQuantiser(config)
    latent = torch.randn(40, 4, 3, 4, 3)
    plain = quantiser.eval()(latent)
    sums = list(quantiser.accumulate(plain.tokens, (3, 4, 3)))
    drawn = MultiScaleQuantiser(dataclasses.replace(config, update="gradient"))
    held = quantiser.state_dict()
    drawn.load_state_dict({name: held[name] for name in drawn.state_dict()})
    found = drawn.train()(latent)
    assert torch.equal(found.tokens, plain.tokens)  # all scales are looked up all the same
    # float32 sums in another order.
    near = [[torch.allclose(row, one[index], atol=1e-5) for one in sums] for index, row in enumerate(found.latent)]
    kept = [one.index(True) + 1 for one in near]
    counts = [kept.count(number) for number in (1, 2, 3)]
    # Of 40 volumes 0.3, 0.3 and 0.4 on the mean; five standard deviations of a share are 15.
    assert all(abs(count - share * 40) < 15 for count, share in zip(counts, (0.3, 0.3, 0.4), strict=True))
    assert min(counts) > 0
    assert torch.equal(drawn.eval()(latent).latent, plain.latent)
    with pytest.raises(ConfigError, match="a share is none"):
        QuantiserConfig(scale_dropout=1.0)


def test_levelled_scales_all_use_the_whole_codebook() -> None:
    """A latent whose means over large areas are small: without levels the coarse scales share a few codes."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(12, 4, 6, 6, 6, generator=generator)
    perplexities = {}
    for levelled in (False, True):
        torch.manual_seed(0)
        config = QuantiserConfig(
            num_codes=24, code_dim=4, scales=((2, 2, 2), (6, 6, 6)), num_refiners=2, decay=0.9, level_sizes=levelled
        )
        quantiser = MultiScaleQuantiser(config).train()
        for _ in range(10):
            quantiser(latents)
        tokens = quantiser.eval().encode(latents)
        perplexities[levelled] = measure_usage(tokens, [8, 216], 24)[2]
    # Means of 27 numbers are a fifth of their size, so that few of the codes are near enough to be any scale's.
    assert perplexities[True][0] > 1.5 * perplexities[False][0]
    assert perplexities[True][0] > 12
    assert perplexities[True][1] > 12


def test_levels_are_the_size_of_what_each_scale_looks_up_from_the_first_batch_on() -> None:
    levels = LevelSizes(2, decay=0.9)
    vectors = torch.cat([torch.full((2, 3, 4), 0.5), torch.full((2, 5, 4), -3.0)], 1)
    levels.observe(vectors, [3, 5])
    assert levels.sizes.tolist() == pytest.approx([0.5, 3.0])
    levels.observe(2 * vectors, [3, 5])
    # The weights of two updates are 0.9 and 1, divided by their sum.
    assert levels.sizes.tolist() == pytest.approx([0.5 * (4.9 / 1.9) ** 0.5, 3 * (4.9 / 1.9) ** 0.5])
    before = levels.sizes.clone()
    levels.observe(torch.full_like(vectors, float("nan")), [3, 5])
    levels.observe(vectors, [3, 5], counted=torch.tensor([False, False]))
    assert torch.equal(levels.sizes, before)


def test_levelled_tokens_decode_to_the_latent_that_they_came_from() -> None:
    quantiser = small(level_sizes=True).train()
    latent = torch.randn(2, 5, 4, 6, 2)
    quantiser(latent)
    quantiser.eval()
    found = quantiser(latent)
    torch.testing.assert_close(quantiser.decode(found.tokens, (4, 6, 2)), found.latent, rtol=1e-5, atol=1e-5)
    codes = quantiser.read(found.tokens, (4, 6, 2))
    assert torch.equal(codes[:, 0], quantiser.codebook.read(found.tokens[:, :1])[:, 0] * quantiser.levels.sizes[0])
