"""The Mamba layer of BrainMT: a selective scan over all tokens from both ends, on a residual stream in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.kernels.causal_conv import causal_conv
from neuroray.kernels.selective_scan import ReverseDirection, bidirectional_selective_scan, selective_scan

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig


class RMSNorm(nn.Module):
    """Root mean square norm over channels (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch channel"]) -> Float[Tensor, "*batch channel"]:
        """The same shape, in the dtype of the weight."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(self.weight.dtype)


class ScanDirection(nn.Module):
    """What one direction of a scan has of its own: convolution, time steps, decay, input and output maps."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        channels, states, self.delta_rank = config.inner_channels, config.state_size, config.delta_rank
        self.states, self.impl = states, config.scan_impl
        self.conv = nn.Conv1d(channels, channels, config.conv_taps, groups=channels, padding=config.conv_taps - 1)
        self.select = nn.Linear(channels, self.delta_rank + 2 * states, bias=False)
        self.delta = nn.Linear(self.delta_rank, channels)
        self.log_decay = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))

    def draw_time_steps(self, shortest: float = 0.001, longest: float = 0.1) -> None:
        """Biases of which softplus makes steps between the two, their logarithms equally likely (Gu and Dao 2023)."""
        steps = torch.exp(torch.empty_like(self.delta.bias).uniform_(math.log(shortest), math.log(longest)))
        with torch.no_grad():
            self.delta.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Float[Tensor, "batch token channel"], *, reverse: bool) -> ReverseDirection:
        """The scan's inputs for this direction (Gu and Dao 2023, section 3.2); `delta_bias` is left to the scan."""
        u = causal_conv(x, self.conv.weight[:, 0], self.conv.bias, reverse=reverse, impl=self.impl)
        low_rank, b, c = self.select(u).split([self.delta_rank, self.states, self.states], dim=-1)
        return ReverseDirection(
            u=u,
            delta=functional.linear(low_rank, self.delta.weight),
            A=-self.log_decay.float().exp(),
            B=b,
            C=c,
            D=self.skip.float(),
            delta_bias=self.delta.bias.float(),
        )


class MambaMixer(nn.Module):
    """Projection, one or two scans gated by the same branch and added, projection (Zhu et al. 2024, algorithm 1)."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(config.num_channels, 2 * config.inner_channels, bias=False)
        self.ahead = ScanDirection(config)
        self.back = ScanDirection(config) if config.bidirectional else None
        self.project_out = nn.Linear(config.inner_channels, config.num_channels, bias=False)

    def forward(self, x: Float[Tensor, "batch token channel"]) -> Float[Tensor, "batch token channel"]:
        """Mixes all tokens; the way back runs over the whole sequence, so that the first token sees all others."""
        x, gate = self.project_in(x).chunk(2, dim=-1)
        ahead = self.ahead(x, reverse=False)._asdict()
        impl = self.config.scan_impl
        if self.back is None:
            scanned = selective_scan(**ahead, z=gate, delta_softplus=True, impl=impl, check_values=False)
            assert isinstance(scanned, Tensor)
            return self.project_out(scanned)
        back = self.back(x, reverse=True)
        scanned = bidirectional_selective_scan(
            **ahead, z=gate, delta_softplus=True, reverse=back, impl=impl, check_values=False
        )
        return self.project_out(scanned / 2 if self.config.halve_directions else scanned)


class MambaLayer(nn.Module):
    """Add to the residual stream, normalise, mix: what comes out is added by the layer that follows."""

    def __init__(self, config: BrainMTConfig, drop_rate: float) -> None:
        super().__init__()
        self.norm = RMSNorm(config.num_channels)
        self.mixer = MambaMixer(config)
        self.drop_rate = drop_rate

    def forward(
        self, hidden: Float[Tensor, "batch token channel"], residual: Float[Tensor, "batch token channel"] | None
    ) -> tuple[Float[Tensor, "batch token channel"], Float[Tensor, "batch token channel"]]:
        """The mixer's output, and the residual stream (float32) that it is to be added to."""
        residual = add_residual(hidden, residual, self.drop_rate, is_training=self.training)
        return self.mixer(self.norm(residual)), residual


def add_residual(
    hidden: Float[Tensor, "batch token channel"],
    residual: Float[Tensor, "batch token channel"] | None,
    drop_rate: float,
    *,
    is_training: bool,
) -> Float[Tensor, "batch token channel"]:
    """The residual stream in float32 after a layer's output, which is left out for some scans in training."""
    if residual is None:
        return hidden.float()
    return residual + drop_path(hidden, drop_rate, is_training=is_training).float()


def drop_path(x: Float[Tensor, "batch ..."], rate: float, *, is_training: bool) -> Float[Tensor, "batch ..."]:
    """Zero for some rows of a batch and larger for the others, so that the mean stays (Huang et al. 2016)."""
    if rate == 0.0 or not is_training:
        return x
    kept = torch.rand(len(x), device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate)).view(-1, *[1] * (x.ndim - 1))


def shrink_for_depth(weight: Tensor, num_layers: int) -> None:
    """Draws the weight that ends a residual branch, smaller the more layers add up (Radford et al. 2019)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    with torch.no_grad():
        weight /= math.sqrt(num_layers)
