"""BrainMT: frames to tokens, two-way Mamba layers over all of them, space-time attention, an answer from CLS."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuroray.platform.models.brainmt.attention import AttentionLayer, TokenMixing
from neuroray.platform.models.brainmt.config import token_grid
from neuroray.platform.models.brainmt.embedding import TokenEmbedding
from neuroray.platform.models.brainmt.frames import ConvFrameEncoder, PatchFrameEncoder, encode_frames
from neuroray.platform.models.brainmt.mamba import MambaLayer, RMSNorm, ScanDirection, add_residual, shrink_for_depth
from neuroray.platform.models.brainmt.moments import PrincipalMoments, find_held
from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig


class BrainMTOutput(NamedTuple):
    """What the model says of each scan. A tuple, so that parallel wrappers find the tensors in it.

    Attributes:
        outputs: `batch output`: standardised scores or logits, as the targets were given in training.
        embedding: `batch feature`: what the head takes: the CLS token, or the mean of the others; then second moments,
            where the model has them.
    """

    outputs: Float[Tensor, "batch output"]
    embedding: Float[Tensor, "batch feature"]


class ProbeHead(nn.Sequential):
    """A linear map of standardised channels, so that all of them count alike whatever the encoder's scale."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__(FixedScale(channels), nn.Linear(channels, num_outputs))

    @torch.no_grad()
    def fit_scale(self, rows: Float[Tensor, "row channel"]) -> None:
        """Takes mean and spread (population) from these; a channel that is the same for all is only centred."""
        scale = self[0]
        assert isinstance(scale, FixedScale)
        std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
        # Rounding in float32 leaves some 1e-6 of the mean where all are the same.
        std = torch.where(std > 1e-5 * mean.abs().clamp(min=1e-3), std, 1.0)
        scale.mean.copy_(mean)
        scale.std.copy_(std)


class MomentsHead(ProbeHead):
    """Linear on a token and second moments, of which only the moments are scaled; it begins by saying nothing.

    A token is made to be read and moves while the layers before it learn. Moments are centred, and all divided by one
    number, for their weights among each other are meant. Beside hundreds of them drawn weights would never be
    forgotten.
    """

    def __init__(self, channels: int, num_features: int, num_outputs: int) -> None:
        super().__init__(num_features, num_outputs)
        self.channels = channels

    @torch.no_grad()
    def fit_scale(self, rows: Float[Tensor, "row feature"]) -> None:
        """As of a probe, for the moments alone."""
        super().fit_scale(rows)
        scale = self[0]
        assert isinstance(scale, FixedScale)
        scale.mean[: self.channels] = 0.0
        scale.std[: self.channels] = 1.0
        common = rows[:, self.channels :].double().std(dim=0, correction=0).square().mean().sqrt()
        scale.std[self.channels :] = common if common > 0 else 1.0


class FixedScale(nn.Module):
    """Subtracts a mean and divides by a spread that are not learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channel"]) -> Float[Tensor, "batch channel"]:
        """The same shape."""
        return (x - self.mean) / self.std


class BrainMT(nn.Module):
    """Kannan, Lindquist and Caffo 2025, section 2; any grid, any number of frames."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.config = config
        rates = config.drop_rates()
        into_mamba, self.last_drop_rate = rates[: config.mamba_depth], rates[config.mamba_depth]
        self.frame_encoder = (ConvFrameEncoder if config.frame_encoder == "conv" else PatchFrameEncoder)(config)
        self.embedding = TokenEmbedding(config)
        self.mamba_layers = nn.ModuleList(MambaLayer(config, rate) for rate in into_mamba)
        self.mamba_norm = RMSNorm(config.num_channels)
        self.attention_layers = nn.ModuleList(AttentionLayer(config, rate) for rate in rates[config.mamba_depth + 1 :])
        has_shared = config.shared_mlp and config.attention_depth > 0
        self.shared = TokenMixing(config) if has_shared else None
        self.final_norm = nn.LayerNorm(config.num_channels) if config.final_norm or config.head == "mlp" else None
        self.moments = (
            PrincipalMoments(math.prod(config.token_grid), config.num_channels, config.num_components)
            if config.pool == "moments"
            else None
        )
        self.head = _build_head(config)
        self._draw_weights()

    def forward(self, voxels: Float[Tensor, "batch time x y z"]) -> BrainMTOutput:
        """Answers for a batch of windows.

        Args:
            voxels: Standardised, in RAS+ order.

        Raises:
            ModelError: no batch of 4D windows, or no frame in it.
        """
        frames, grid = self.encode_frames(voxels)
        tokens = self._encode_sequence(frames, grid)
        pooled = tokens[:, 1:].mean(dim=1) if self.config.pool == "mean" else tokens[:, 0]
        embedding = pooled if self.final_norm is None else self.final_norm(pooled)
        if self.moments is not None:
            moments = self.moments(frames, find_held(voxels))
            embedding = torch.cat([embedding.to(moments.dtype), moments], dim=1)
        return BrainMTOutput(self.head(embedding.to(_dtype_of(self.head))), embedding)

    def encode(self, voxels: Float[Tensor, "batch time x y z"]) -> Float[Tensor, "batch token channel"]:
        """All tokens after the last layer, CLS first, then place by place, frame by frame.

        Raises:
            ModelError: as `forward`.
        """
        return self._encode_sequence(*self.encode_frames(voxels))

    def encode_frames(
        self, voxels: Float[Tensor, "batch time x y z"]
    ) -> tuple[Float[Tensor, "batch time channel place"], tuple[int, int, int]]:
        """Tokens of each frame by itself, and their grid along y, x, z.

        Raises:
            ModelError: as `forward`.
        """
        _check(voxels)
        config = self.config
        frames = encode_frames(
            self.frame_encoder,
            voxels.to(_dtype_of(self.frame_encoder)),
            frames_at_once=config.frames_at_once,
            is_checkpointed=config.checkpoint,
        )
        x, y, z = voxels.shape[-3:]
        return frames, token_grid((x, y, z))

    def _encode_sequence(
        self, frames: Float[Tensor, "batch time channel place"], grid: tuple[int, int, int]
    ) -> Float[Tensor, "batch token channel"]:
        hidden = self._mix_by_scans(self.embedding(frames, grid))
        for layer in self.attention_layers:
            hidden = self._run(layer, hidden, self.shared)
        return hidden

    def names_without_decay(self) -> frozenset[str]:
        """Parameters that weight decay would pull where they should not be pulled.

        That is the tables of places and times, the CLS token, and the logarithm of a scan's decay rates, whose 0 is a
        rate of one and not none at all.
        """
        names = {name for name, _ in self.named_parameters() if name.endswith(".log_decay")}
        return frozenset(names | {"embedding.cls", "embedding.space", "embedding.time"})

    def _mix_by_scans(self, hidden: Float[Tensor, "batch token channel"]) -> Float[Tensor, "batch token channel"]:
        residual = None
        for layer in self.mamba_layers:
            hidden, residual = self._run(layer, hidden, residual)
        return self.mamba_norm(add_residual(hidden, residual, self.last_drop_rate, is_training=self.training))

    def _run(self, layer: Callable[..., Any], *inputs: Any) -> Any:
        """A layer, of which only what enters is kept for the backward pass where the configuration says so."""
        if self.config.checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def _draw_weights(self) -> None:
        """As the released code draws them; convolutions keep torch's own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.time_steps == "mamba":
            for module in self.modules():
                if isinstance(module, ScanDirection):
                    module.draw_time_steps()
        num_layers = self.config.mamba_depth + self.config.attention_depth
        if isinstance(self.head, MomentsHead):
            linear = self.head[1]
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.weight)
        for name, module in self.named_modules():
            if name.endswith(("mixer.project_out", "mlp.down")):
                assert isinstance(module, nn.Linear)
                shrink_for_depth(module.weight, num_layers)


def _build_head(config: BrainMTConfig) -> nn.Module:
    channels = config.num_channels
    if config.head == "probe":
        return ProbeHead(config.num_features, config.num_outputs)
    if config.pool == "moments":
        return MomentsHead(channels, config.num_features, config.num_outputs)
    if config.head == "linear":
        return nn.Linear(channels, config.num_outputs)
    return nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, config.num_outputs))


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _check(voxels: Tensor) -> None:
    if voxels.ndim != 5 or 0 in voxels.shape:
        raise ModelError(
            "BrainMT takes a batch of 4D windows",
            given=f"shape {tuple(voxels.shape)}",
            expected="batch time x y z, at least one of each",
            fix="a single 3D volume has no time: use a model of volumes" if voxels.ndim == 4 else None,
        )
    if not voxels.is_floating_point():
        raise ModelError("BrainMT takes standardised voxels", given=str(voxels.dtype), expected="a float dtype")
