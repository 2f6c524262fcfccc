"""NeuroARTransformer: from the previous scan, two ages and coarser scales of the target to codes of each scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.ages import AgeEmbedding
from neuroray.platform.models.neuroar.blocks import Block, Memory, init_block, init_modulation
from neuroray.platform.models.neuroar.drift import measure_drift
from neuroray.platform.models.neuroar.nearest_head import NearestHead, Unchanged
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, shrink
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Tokens = Float[Tensor, "batch token channel"]
    Rows = Bool[Tensor, " batch"]


class NeuroAROutput(NamedTuple):
    """What the transformer says.

    Attributes:
        logits: Of the target's codes, for every token of all scales, in float32.
    """

    logits: Float[Tensor, "batch token code"]


class Conditions(NamedTuple):
    """What all scales of a row are told from, worked out once.

    Attributes:
        ages: Tokens to look at.
        start: The vector of the ages, from which the first scale starts.
        condition: What blocks are given for AdaLN.
        previous: Of `channel`, embedded at all places.
        unchanged: Of the `nearest` head: what codes of the previous scan, and the sum before them, ask for.
        memories: Of `sequence`, by block.
        told: Of the `nearest` head, the vectors that the scale told last was compared with.
    """

    ages: Float[Tensor, "batch age channel"]
    start: Float[Tensor, "batch channel"]
    condition: Float[Tensor, "batch 1 channel"]
    previous: Tokens | None
    unchanged: Unchanged | None
    memories: list[Memory | None]
    told: Tokens | None = None


class NeuroARTransformer(nn.Module):
    """Scales are told one after another, all places of a scale at once (VAR), given the previous scan and two ages."""

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        self.config = config
        width, code_dim = config.width, config.quantiser.code_dim
        self.ages = AgeEmbedding(config)
        self.embed_target = nn.Linear(code_dim, width)
        # No bias: before the first token there is nothing, which adds nothing.
        self.embed_before = nn.Linear(code_dim, width, bias=False) if config.order == "token" else None
        # The sum of all scales of the previous scan, shrunk to each, and its own codes there.
        self.embed_previous = nn.Linear(2 * code_dim, width) if config.previous != "none" else None
        self.hidden_previous = nn.Parameter(torch.zeros(width)) if config.previous != "none" else None
        self.places = nn.Parameter(torch.empty(config.num_tokens, width))
        self.levels = nn.Parameter(torch.empty(len(config.scales), width))
        self.roles = nn.Parameter(torch.empty(2, width)) if config.previous == "sequence" else None
        self.start = nn.Parameter(torch.empty(config.ends[1], width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulate = nn.Linear(width, 6 * width) if config.adaln == "shared" else None
        self.modulate_head = nn.Linear(width, 2 * width) if config.adaln != "none" else None
        if config.head == "nearest":
            self.head = NearestHead(config)
        else:
            self.head = nn.Linear(width, config.quantiser.num_codes)
        self._init()

    def forward(
        self,
        target: Float[Tensor, "batch later_token code_channel"],
        ages_years: Float[Tensor, "batch 2"],
        previous: Float[Tensor, "batch token previous_channel"] | None = None,
        *,
        before: Float[Tensor, "batch token code_channel"] | None = None,
        hide_ages: Rows | None = None,
        hide_previous: Rows | None = None,
    ) -> NeuroAROutput:
        """All scales in one pass, each told from the true ones before it (teacher forcing).

        Args:
            target: What scales but the first are told from (`MultiScaleQuantiser.teacher_inputs`).
            ages_years: Of the previous scan and of the target.
            previous: `describe_previous` of the previous scan's tokens; None only for a model that sees none.
            before: `describe_before` of the target's tokens, for a model that tells them one by one.
            hide_ages: Rows whose ages are not told; in training more are drawn.
            hide_previous: Rows whose previous scan is not shown; in training more are drawn.

        Raises:
            ModelError: inputs that do not fit, ages that are none.
        """
        config = self.config
        if self.training:
            hide_ages = _draw_hidden(hide_ages, config.age_dropout, ages_years)
            hide_previous = _draw_hidden(hide_previous, config.previous_dropout, ages_years)
        expected = (len(ages_years), config.num_tokens - config.ends[1], config.quantiser.code_dim)
        if tuple(target.shape) != expected:
            raise ModelError("inputs do not fit the scales", given=tuple(target.shape), expected=expected)
        conditions = self.prepare(ages_years, previous, hide_ages=hide_ages, hide_previous=hide_previous)
        embedded = self._drop(self.embed_target(target.to(self.start.dtype)))
        tokens = self._add_before(torch.cat([self._embed_start(conditions), embedded], 1), before)
        tokens = self._place(tokens, 0, config.num_tokens, conditions)
        for block, memory in zip(self.blocks, conditions.memories, strict=True):
            tokens, _ = block(tokens, conditions.condition, conditions.ages, config.ends, memory)
        so_far = torch.cat([target.new_zeros(len(target), config.ends[1], target.shape[2]), target], 1)
        return NeuroAROutput(self._judge(tokens, conditions, so_far, 0)[0])

    def prepare(
        self,
        ages_years: Float[Tensor, "batch 2"],
        previous: Float[Tensor, "batch token previous_channel"] | None,
        *,
        hide_ages: Rows | None = None,
        hide_previous: Rows | None = None,
    ) -> Conditions:
        """All that does not depend on the target; see `forward`.

        In `sequence` the previous scan's tokens see each other alone and the previous age, so that a previous scan of
        one row serves any number of target ages.
        """
        ages, start = self.ages(ages_years, hide_ages)
        condition = self._condition(start)
        shown = self._embed_previous(previous, hide_previous)
        memories: list[Memory | None] = [None] * len(self.blocks)
        if shown is None or self.config.previous != "sequence":
            unchanged = self._leave_unchanged(previous, hide_previous, ages_years, hide_ages)
            return Conditions(ages, start, condition, shown, unchanged, memories)
        if len(shown) not in (1, len(ages)):
            raise ModelError("one previous scan, or one per row", given=len(shown), expected=f"1 or {len(ages)}")
        rows = slice(0, len(shown))
        own_ages, own_start = self.ages(
            ages_years[rows, :1].expand(-1, 2), None if hide_ages is None else hide_ages[rows]
        )
        own = self._condition(own_start)
        for index, block in enumerate(self.blocks):
            shown, memory = block(shown, own, own_ages, (0, shown.shape[1]))
            memories[index] = Memory(*(part.expand(len(ages), -1, -1, -1) for part in memory))
        return Conditions(ages, start, condition, None, None, memories)

    def tell_scale(
        self, scale_index: int, target: Float[Tensor, "batch token code_channel"] | None, conditions: Conditions
    ) -> tuple[Float[Tensor, "batch token code"], Conditions]:
        """Logits of one scale, and the conditions with what later scales may see of it; scales in order.

        Args:
            scale_index: From 0.
            target: What it is told from; None for the first.
            conditions: As the scale before has left them.
        """
        start = self.config.ends[scale_index]
        given = self._embed_start(conditions) if target is None else self.embed_target(target.to(self.start.dtype))
        return self._tell(given, start, conditions, target)

    def tell_token(
        self,
        place: int,
        target: Float[Tensor, "batch 1 code_channel"] | None,
        before: Float[Tensor, "batch 1 code_channel"],
        conditions: Conditions,
    ) -> tuple[Float[Tensor, "batch 1 code"], Conditions]:
        """As `tell_scale`, of one token of a model that tells them one by one; tokens in order.

        Args:
            place: From 0, over all scales.
            target: What it is told from; None in the first scale.
            before: The code of the token before it; zeros for the first.
            conditions: As the token before has left them.
        """
        if target is None:
            given = self._embed_start(conditions)[:, place : place + 1]
        else:
            given = self.embed_target(target.to(self.start.dtype))
        return self._tell(self._add_before(given, before), place, conditions, target)

    def names_without_decay(self) -> set[str]:
        """Parameters of two axes or more that weight decay leaves alone: tables of places, levels, roles, starts."""
        names = {"places", "levels", "roles", "start", "ages.kinds", "ages.hidden"}
        return {name for name, _ in self.named_parameters() if name in names or name.endswith(("offsets", "log_scale"))}

    def _condition(self, start: Float[Tensor, "batch channel"]) -> Float[Tensor, "batch 1 channel"]:
        if self.modulate is not None:
            return self.modulate(functional.silu(start))[:, None]
        if self.config.adaln == "none":
            return start.new_zeros(len(start), 1, 6 * start.shape[1])
        return start[:, None]

    def _embed_previous(self, previous: Tensor | None, hide: Rows | None) -> Tokens | None:
        if self.embed_previous is None or self.hidden_previous is None:
            return None
        number = self.config.quantiser.code_dim
        expected = (self.config.num_tokens, 3 * number)
        if previous is None or tuple(previous.shape[1:]) != expected:
            given = None if previous is None else tuple(previous.shape)
            raise ModelError("the previous scan does not fit", given=given, expected=("batch", *expected))
        shown = self._drop(self.embed_previous(previous[..., : 2 * number].to(self.start.dtype)))
        if hide is not None:
            shown = torch.where(hide[: len(shown), None, None], self.hidden_previous.to(shown.dtype), shown)
        if self.roles is None:
            return shown
        return shown + (self.roles[0] + self.places + self._level_table())

    def _tell(
        self, given: Tokens, start: int, conditions: Conditions, target: Tensor | None
    ) -> tuple[Tensor, Conditions]:
        number = given.shape[1]
        tokens = self._place(given, start, start + number, conditions)
        memories: list[Memory | None] = []
        for block, known in zip(self.blocks, conditions.memories, strict=True):
            tokens, memory = block(tokens, conditions.condition, conditions.ages, (0, number), known)
            memories.append(memory)
        so_far = tokens.new_zeros(len(tokens), number, self.config.quantiser.code_dim) if target is None else target
        logits, told = self._judge(tokens, conditions, so_far, start)
        return logits, conditions._replace(memories=memories, told=told)

    def _add_before(self, tokens: Tokens, before: Tensor | None) -> Tokens:
        if self.embed_before is None:
            return tokens
        expected = (*tokens.shape[:2], self.config.quantiser.code_dim)
        if before is None or tuple(before.shape) != expected:
            given = None if before is None else tuple(before.shape)
            raise ModelError("the codes before each token do not fit", given=given, expected=expected)
        return tokens + self.embed_before(before.to(self.start.dtype))

    def _drop(self, embedded: Tokens) -> Tokens:
        return functional.dropout(embedded, self.config.dropout, self.training)

    def _leave_unchanged(
        self, previous: Tensor | None, hide: Rows | None, ages_years: Tensor, hide_ages: Rows | None
    ) -> Unchanged | None:
        if self.config.head != "nearest" or previous is None:
            return None
        whole, own, before = previous.float().chunk(3, -1)
        shown = whole.new_ones(len(whole), 1, 1) if hide is None else (~hide[: len(whole), None, None]).float()
        decades = (ages_years[:, 1] - ages_years[:, 0]).float() / 10
        if hide_ages is not None:
            decades = torch.where(hide_ages, 0.0, decades)
        midway = ages_years.float().mean(1) / 10
        return Unchanged(
            own=own + before, whole=whole, shown=shown, decades=decades[:, None, None], midway=midway[:, None, None]
        )

    def _embed_start(self, conditions: Conditions) -> Tokens:
        return conditions.start[:, None] + self.start

    def _place(self, tokens: Tokens, start: int, end: int, conditions: Conditions) -> Tokens:
        placed = tokens + (self.places[start:end] + self._level_table()[start:end])
        if conditions.previous is not None:
            placed = placed + conditions.previous[:, start:end]
        return placed if self.roles is None else placed + self.roles[1]

    def _level_table(self) -> Float[Tensor, "token channel"]:
        sizes = torch.tensor([math.prod(scale) for scale in self.config.scales], device=self.levels.device)
        return self.levels.repeat_interleave(sizes, dim=0, output_size=self.config.num_tokens)

    def _judge(
        self, tokens: Tokens, conditions: Conditions, so_far: Tensor, offset: int
    ) -> tuple[Float[Tensor, "batch token code"], Tokens | None]:
        tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        if self.modulate_head is not None:
            scale, shift = self.modulate_head(functional.silu(conditions.start))[:, None].chunk(2, -1)
            tokens = tokens * (1 + scale) + shift
        with torch.autocast(tokens.device.type, enabled=False):
            if isinstance(self.head, NearestHead):
                assert conditions.unchanged is not None  # such a model is always given a previous scan
                return self.head(tokens, conditions.unchanged, so_far, offset)
            return self.head(tokens.to(self.head.weight.dtype)).float(), None

    @torch.no_grad()
    def start_from(
        self,
        before: Float[Tensor, "pair channel x y z"],
        after: Float[Tensor, "pair channel x y z"],
        ages_years: Float[Tensor, "pair 2"],
    ) -> None:
        """Takes from training people what a `nearest` head starts from: see `measure_drift`."""
        if isinstance(self.head, NearestHead):
            self.head.drift_by(measure_drift(before, after, ages_years, self.config.scales))

    def adopt(self, quantiser: MultiScaleQuantiser) -> None:
        """Takes over the codes that a `nearest` head compares with; any other needs none."""
        if isinstance(self.head, NearestHead):
            self.head.adopt(quantiser, self.config)

    def _init(self) -> None:
        config = self.config
        std = math.sqrt(1 / config.width / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias) if module.bias is not None else None
        for table in (self.places, self.levels, self.start, *([] if self.roles is None else [self.roles])):
            nn.init.trunc_normal_(table, std=std)
        for block in self.blocks:
            assert isinstance(block, Block)
            init_block(block, config)
        if self.modulate is not None:
            init_modulation(self.modulate, config)
        with torch.no_grad():
            if isinstance(self.head, NearestHead):
                nn.init.zeros_(self.head.change.weight)
            else:
                self.head.weight.mul_(0.02)
            if self.modulate_head is not None:
                self.modulate_head.weight.mul_(0.5)


@torch.no_grad()
def describe_previous(
    quantiser: MultiScaleQuantiser, tokens: Int[Tensor, "batch token"], latent_shape: tuple[int, int, int]
) -> Float[Tensor, "batch token previous_channel"]:
    """What is shown of a previous scan: at each scale the sum of all its scales, shrunk to it, its own codes there,
    and the sum of the scales before, shrunk.

    The first's difference from what the target has so far is, to rounding by codes, what the target would look up next
    had nothing changed.

    Raises:
        ModelError: tokens that do not fit.
    """
    scales = quantiser.config.resolve_scales(latent_shape)
    whole = quantiser.decode(tokens, latent_shape)
    shrunk = torch.cat([shrink(whole, scale).flatten(2) for scale in scales], 2).transpose(1, 2)
    later = quantiser.teacher_inputs(tokens, latent_shape)
    before = torch.cat([later.new_zeros(len(later), shrunk.shape[1] - later.shape[1], later.shape[2]), later], 1)
    return torch.cat([shrunk, quantiser.read(tokens, latent_shape), before], -1)


@torch.no_grad()
def describe_before(
    quantiser: MultiScaleQuantiser, tokens: Int[Tensor, "batch token"]
) -> Float[Tensor, "batch token code_channel"]:
    """The code of the token before each; zeros before the first."""
    return functional.pad(quantiser.codebook.read(tokens)[:, :-1], (0, 0, 1, 0))


def _draw_hidden(given: Rows | None, share: float, rows: Tensor) -> Rows:
    drawn = torch.rand(len(rows), device=rows.device) < share
    return drawn if given is None else drawn | given
