"""Codebook: nearest codes, running means that follow the data on all ranks together, new life for dead codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_SPREAD_OF_COPIES = 0.05
_SMALLEST_LEVEL = 1e-6
# Of each volume and scale at most so many vectors are remembered: a batch's fine scales would push out all else.
_MOST_REMEMBERED = 16


class Codebook(nn.Module):
    """Codes as rows of `codes`: a buffer that `observe` moves, or a parameter, as the configuration says.

    The running count `sizes` starts at 1 beside codes taken from data, so that the first batch moves a code by a
    hundredth of the way (decay 0.99). A count that starts at 0 beside a whole code divides by next to nothing instead,
    and throws every unused code far away.

    Vectors of many batches are remembered, as many of each scale: of a scale of one place a batch has a handful, and
    codes that start from these alone, or are revived from them, leave it a few codes for good.
    """

    codes: Tensor
    sizes: Tensor
    sums: Tensor
    recent: Tensor
    num_recent: Tensor
    num_updates: Tensor

    def __init__(self, config: QuantiserConfig) -> None:
        super().__init__()
        self.config = config
        scales = len(config.scales) or config.num_scales
        shape = (config.num_codes, config.code_dim)
        if config.update == "gradient":
            # As in VAR: close to 0, so that the encoder finds them all within reach.
            self.codes = nn.Parameter(torch.empty(shape).uniform_(-1 / shape[0], 1 / shape[0]))
            return
        codes = torch.randn(shape)
        self.register_buffer("codes", codes)
        self.register_buffer("sizes", torch.ones(shape[0]))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("recent", torch.zeros(scales, *shape))
        self.register_buffer("num_recent", torch.zeros(scales, dtype=torch.int64))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def follows_data(self) -> bool:
        """Whether codes are running means."""
        return self.config.update == "average"

    @property
    def has_started(self) -> bool:
        """Whether the codes are of data already."""
        return not self.follows_data or int(self.num_updates) > 0

    def find_nearest(self, vectors: Float[Tensor, "batch token channel"]) -> Int[Tensor, "batch token"]:
        """The index of the nearest code of each vector, compared in float32; of equals the first."""
        codes, vectors = self.codes.detach().float(), vectors.detach().float()
        if self.config.distance == "cosine":
            return (functional.normalize(vectors, dim=-1) @ functional.normalize(codes, dim=-1).T).argmax(-1)
        # |z - e|^2 without |z|^2, which is the same for all codes.
        return (codes.square().sum(-1) - 2 * vectors @ codes.T).argmin(-1)

    def read(self, indices: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token channel"]:
        """The codes themselves, in float32."""
        return functional.embedding(indices, self.codes.float())

    @torch.no_grad()
    def start(
        self,
        vectors: Float[Tensor, "batch token channel"],
        scale_sizes: Sequence[int],
        counted: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Takes the codes from data, every scale as often as any other; the same on all ranks.

        Args:
            vectors: What is to be quantised, the scales behind each other.
            scale_sizes: How many of the tokens each scale has.
            counted: Rows that count; None: all.
        """
        pool = _gather(vectors if counted is None else vectors[counted])
        if not pool.isfinite().all() or not len(pool):
            return
        weights = torch.cat([torch.full((size,), 1 / size) for size in scale_sizes]).repeat(len(pool))
        self.codes.copy_(self._draw(pool.flatten(0, 1), weights, len(self.codes)))
        self.sizes.fill_(1)
        self.sums.copy_(self.codes)

    @torch.no_grad()
    def observe(
        self,
        vectors: Float[Tensor, "batch token channel"],
        indices: Int[Tensor, "batch token"],
        scale_sizes: Sequence[int],
        counted: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Moves each code towards the mean of the vectors of all ranks that it stands for, and revives dead ones.

        Until a scale has had its share of all codes, what is remembered of it takes the place of those used least.
        Vectors that are no numbers change nothing: the loss will stop the run, with the codes of the step before.
        """
        if counted is not None:
            vectors, indices = vectors[counted], indices[counted]
        flat, weights = indices.flatten(), self._weigh(scale_sizes).to(self.sizes).repeat(len(indices))
        counts = torch.zeros_like(self.sizes).index_add_(0, flat, weights)
        weighed = vectors.flatten(0, 1).to(self.sums.dtype) * weights[:, None]
        sums = torch.zeros_like(self.sums).index_add_(0, flat, weighed)
        if _is_shared():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if not sums.isfinite().all():
            return
        self.num_updates += 1
        self.sizes.mul_(self.config.decay).add_(counts, alpha=1 - self.config.decay)
        self.sums.mul_(self.config.decay).add_(sums, alpha=1 - self.config.decay)
        # Count and sum of an unused code fade alike: it stays where it is, exactly, and nothing is divided by nothing.
        used = counts > 0
        self.codes[used] = self.sums[used] / self.sizes[used, None]
        if self.config.revive_below > 0:
            self._sow(self._remember(vectors, scale_sizes))
            self._revive()

    def _weigh(self, scale_sizes: Sequence[int]) -> Float[Tensor, " token"]:
        """How much each place of a volume counts, 1 on average."""
        if not self.config.equal_scales:
            return torch.ones(sum(scale_sizes))
        share = sum(scale_sizes) / len(scale_sizes)
        return torch.cat([torch.full((size,), share / size) for size in scale_sizes])

    def _remember(
        self, vectors: Float[Tensor, "batch token channel"], scale_sizes: Sequence[int]
    ) -> Float[Tensor, "row channel"]:
        """Some vectors of each scale and volume, of other places at each update; the oldest are forgotten.

        Returns:
            Those of scales of which too few were known for their share of the codes.
        """
        numbers = [min(size, _MOST_REMEMBERED) for size in scale_sizes]
        places, start = [], 0
        for size, number in zip(scale_sizes, numbers, strict=True):
            places.append((torch.arange(number) * size // number + int(self.num_updates)) % size + start)
            start += size
        chosen = _gather(vectors[:, torch.cat(places).to(vectors.device)])
        needed = []
        for index, part in enumerate(chosen.split(numbers, 1)):
            rows = part.flatten(0, 1)[-len(self.codes) :]
            at = (int(self.num_recent[index]) + torch.arange(len(rows))) % len(self.codes)
            self.recent[index, at.to(self.recent.device)] = rows.to(self.recent)
            needed.append(rows[: max(0, len(self.codes) // len(scale_sizes) - int(self.num_recent[index]))])
            self.num_recent[index] += len(rows)
        return torch.cat(needed)

    def _sow(self, codes: Float[Tensor, "row channel"]) -> None:
        """Sets these where codes are used least."""
        at = self.sizes.argsort(stable=True)[: len(codes)]
        self._set(at, codes[: len(at)])

    def _recall(self) -> tuple[Float[Tensor, "row channel"], Float[Tensor, " row"]]:
        """What is remembered, and weights by which all scales are drawn equally often."""
        numbers = [min(int(number), len(self.codes)) for number in self.num_recent]
        rows = torch.cat([part[:number] for part, number in zip(self.recent, numbers, strict=True)])
        return rows, torch.cat([torch.full((number,), 1 / max(1, number)) for number in numbers])

    def _set(self, at: Tensor, codes: Float[Tensor, "row channel"]) -> None:
        """With the count of a mean code, to be known from one that is dead."""
        mean = self.sizes.mean()
        self.codes[at] = codes.to(self.codes)
        self.sizes[at] = mean
        # The sum goes with the count: a whole code beside a small count would be a code many times as long.
        self.sums[at] = self.codes[at] * mean

    def _revive(self) -> None:
        dead = self.sizes < self.config.revive_below * self.sizes.mean()
        num_dead = int(dead.sum())  # the same on all ranks, as the counts are
        if num_dead:
            self._set(dead, self._draw(*self._recall(), num_dead))

    def _draw(
        self, rows: Float[Tensor, "row channel"], weights: Float[Tensor, " row"], number: int
    ) -> Float[Tensor, "number channel"]:
        """Rows by their weights, none twice as long as there are others; copies are spread.

        Drawn by the number of updates alone, so that all ranks and a continued run draw the same.
        """
        generator = torch.Generator().manual_seed(int(self.num_updates))
        chosen = torch.multinomial(weights, min(number, len(rows)), generator=generator)
        again = torch.multinomial(weights, max(1, number - len(chosen)), replacement=True, generator=generator)
        noise = torch.randn(number - len(chosen), rows.shape[1], generator=generator).to(rows)
        copies = rows[again[: len(noise)].to(rows.device)] + _SPREAD_OF_COPIES * rows.std(0, correction=0) * noise
        return torch.cat([rows[chosen.to(rows.device)], copies]).to(self.codes.dtype)


class LevelSizes(nn.Module):
    """How large what each scale looks up usually is: the root of the running mean of its square, over all ranks."""

    sizes: Tensor
    squares: Tensor
    num_updates: Tensor

    def __init__(self, num_scales: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sizes", torch.ones(num_scales))
        self.register_buffer("squares", torch.zeros(num_scales))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(
        self,
        vectors: Float[Tensor, "batch token channel"],
        scale_sizes: Sequence[int],
        counted: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Moves each towards that of these vectors; the first ones set it. Vectors that are no numbers change nothing.

        Args:
            vectors: Not levelled; the scales behind each other.
            scale_sizes: How many of the tokens each scale has.
            counted: Rows that count; None: all.
        """
        if counted is not None:
            vectors = vectors[counted]
        found = [part.double().square().sum() for part in vectors.split(list(scale_sizes), 1)]
        numbers = [float(len(vectors) * size * vectors.shape[2]) for size in scale_sizes]
        totals = torch.stack([torch.stack(found), torch.tensor(numbers, dtype=torch.float64, device=vectors.device)])
        if _is_shared():
            dist.all_reduce(totals)
        if not totals.isfinite().all() or not bool((totals[1] > 0).all()):
            return
        self.num_updates += 1
        # Weights of all updates so far add up to 1, so that the zeros of the start count nothing.
        share = (1 - self.decay) / (1 - self.decay ** int(self.num_updates))
        self.squares.lerp_((totals[0] / totals[1]).to(self.squares), share)
        self.sizes.copy_(self.squares.sqrt().clamp_min(_SMALLEST_LEVEL))


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(vectors: Float[Tensor, "batch token channel"]) -> Float[Tensor, "all_batch token channel"]:
    """The rows of all ranks, by rank, which may have different numbers of them."""
    if not _is_shared():
        return vectors
    number = torch.tensor([len(vectors)], device=vectors.device)
    numbers = [torch.empty_like(number) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, number)
    most = max(int(one) for one in numbers)
    padded = vectors.new_zeros(most, *vectors.shape[1:])
    padded[: len(vectors)] = vectors
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(one)] for part, one in zip(parts, numbers, strict=True)])
