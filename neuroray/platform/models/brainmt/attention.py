"""The attention layer of BrainMT: all tokens of all frames look at each other; the scores are never all in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.brainmt.mamba import drop_path

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig


class Attention(nn.Module):
    """Multi-head attention over the whole sequence (Vaswani et al. 2017)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "batch token channel"]) -> Float[Tensor, "batch token channel"]:
        """The same shape. torch's fused kernels work through the scores block by block."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels, hidden)
        self.down = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "*batch channel"]) -> Float[Tensor, "*batch channel"]:
        """The same shape."""
        return self.down(functional.gelu(self.up(x)))


class TokenMixing(nn.Module):
    """The LayerNorm and MLP of an attention layer; in the release one of them serves all layers and both branches."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.num_channels, eps=1e-5)
        self.mlp = MLP(config.num_channels, int(config.mlp_ratio * config.num_channels))


class AttentionLayer(nn.Module):
    """Attention, then MLP, each normalised before and added after."""

    def __init__(self, config: BrainMTConfig, drop_rate: float) -> None:
        super().__init__()
        self.attention = Attention(config.num_channels, config.num_heads)
        self.own = None if config.shared_mlp else TokenMixing(config)
        self.drop_rate = drop_rate

    def forward(
        self, x: Float[Tensor, "batch token channel"], shared: TokenMixing | None
    ) -> Float[Tensor, "batch token channel"]:
        """The same shape; `shared` is used where the layer has no norm and MLP of its own."""
        mixing = self.own or shared
        assert mixing is not None
        x = x + self._drop(self.attention(mixing.norm(x)))
        return x + self._drop(mixing.mlp(mixing.norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_rate, is_training=self.training)
