"""A frozen 2D encoder that turns pictures of slices into vectors, and tells which weights it did that with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from neuroray.config import Config, ConfigError, without_effect
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers import backbones, encoder_weights
from neuroray.platform.models.layers.encoder_attention import capture_attention, find_attentions, roll_out
from neuroray.platform.models.layers.slices import SlicePlan

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceEncoderConfig(Config):
    """A timm backbone, its weights and what is read out of it; the defaults are DinoAtten3D's, but for the weights.

    Attributes:
        backbone: Any timm name.
        weights: "timm": those that the name stands for, from the local cache or the Hugging Face hub. "file":
            `weights_file`, which must have `weights_sha256`. "random": drawn from `seed`; the default, since it builds
            anywhere; a recipe that means learned weights says so.
        weights_file: For "file": .safetensors or .pth, timm's names or DINOv2's own.
        weights_sha256: For "file": the hash of the whole file, hex.
        seed: For "random".
        readout: "cls": the class token after the final norm. "mean": the mean over all tokens, prefix included.
            "pool": the backbone's own pooling, which convolutional backbones need. "grid": the patch tokens of a
            transformer side by side, row by row: long, but it says where in the slice, which an encoder with random
            weights has not learned to keep through pooling.
        positions: How a position table is resampled to the picture size: as timm does, or as DINOv2's official code
            ("hub"), which differs for the models without registers.
        mean: Per channel, taken off pictures in 0..1; None: the backbone's own (ImageNet's for DINOv2).
        std: Per channel, divided by; None: the backbone's own.
        channels: Length of a vector, to build a head where timm is not installed; None: timm is asked.
        precision: "bfloat16" runs the backbone's products in half the digits, which processors with instructions for
            it do about twice as fast; norms, softmax and the readout stay float32. Vectors differ in the third digit,
            so they are kept apart from those of "float32".
        batch_size: Pictures encoded at a time.
    """

    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    weights: Literal["timm", "file", "random"] = "random"
    weights_file: str | None = without_effect(None)
    weights_sha256: str | None = None
    seed: int = 0
    readout: Literal["cls", "mean", "pool", "grid"] = "cls"
    positions: encoder_weights.Positions = "timm"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channels: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = without_effect(25)

    def __post_init__(self) -> None:
        given = [name for name in ("weights_file", "weights_sha256") if getattr(self, name) is not None]
        if self.weights == "file" and len(given) < 2:
            raise ConfigError(
                'weights "file" needs weights_file and weights_sha256', given=", ".join(given) or "neither"
            )
        if self.weights != "file" and given:
            raise ConfigError(f'{given[0]} is given, but weights is "{self.weights}"', fix='set weights to "file"')
        if self.weights == "random" and self.positions == "hub":
            raise ConfigError('positions "hub" resamples loaded tables', given='weights "random"')
        if self.batch_size < 1:
            raise ConfigError("batch_size is too small", given=self.batch_size, expected="at least 1")

    def resolve_channels(self, image_size: int) -> int:
        """Length of the vectors for square pictures, without building the encoder."""
        return self.channels or backbones.count_channels(self.backbone, self.readout, image_size)

    def build(self, image_size: int, *, load_weights: bool = True) -> SliceEncoder:
        """The frozen encoder for square pictures.

        Args:
            image_size: Height and width.
            load_weights: False leaves "timm" and "file" weights unread, for a checkpoint that brings its own. Such an
                encoder refuses to encode until `load_state_dict` has filled it.

        Raises:
            ModelError: an unknown backbone, or weights that are missing or wrong.
        """
        return SliceEncoder(self, image_size, load_weights=load_weights)


class SliceEncoder(nn.Module):
    """A backbone that never learns: no gradients, and always in `eval` mode, whatever the model around it does."""

    backbone: backbones.Backbone

    def __init__(self, config: SliceEncoderConfig, image_size: int, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.backbone = _build_backbone(config, image_size, load_weights=load_weights)
        backbones.check_readout(self.backbone, config.backbone, config.readout)
        self.num_channels = backbones.measure_channels(self.backbone, config.readout)
        if config.channels not in (None, self.num_channels):
            raise ModelError(
                f"{config.backbone} gives vectors of another length", given=config.channels, expected=self.num_channels
            )
        known = backbones.describe_backbone(config.backbone)
        self.mean = config.mean or known.mean
        self.std = config.std or known.std
        self._has_weights = load_weights or config.weights == "random"
        self.register_load_state_dict_post_hook(_note_loaded)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a frozen encoder gives the same vectors in training and in use."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "slice 3 height width"]) -> Float[Tensor, "slice channel"]:
        """Vectors of pictures in 0..1, `batch_size` at a time; at least float32."""
        return self.encode(images)

    def encode(self, images: Float[Tensor, "slice 3 height width"]) -> Float[Tensor, "slice channel"]:
        """As `forward`, with the way back to the pixels open where autograd is on, for saliency."""
        vectors = [self.read_out(self._run_tokens(batch)) for batch in self._split(images)]
        features = torch.cat(vectors) if vectors else images.new_zeros((0, self.num_channels))
        return features.to(torch.promote_types(features.dtype, torch.float32))

    @torch.no_grad()
    def encode_tokens(self, images: Float[Tensor, "slice 3 height width"]) -> Float[Tensor, "slice token channel"]:
        """All tokens after the final norm, which the readouts "mean", "cls" and "grid" make vectors of.

        Raises:
            ModelError: the backbone gives a map in place of tokens.
        """
        self._require_tokens()
        tokens = [self._run_tokens(batch) for batch in self._split(images)]
        if not tokens:
            return images.new_zeros((0, len(self.token_weights()), int(self.backbone.num_features)))
        return torch.cat(tokens).to(torch.promote_types(tokens[0].dtype, torch.float32))

    @torch.no_grad()
    def attention_maps(self, images: Float[Tensor, "slice 3 height width"]) -> Float[Tensor, "slice row column"]:
        """Attention of the class token to each patch in the last block, mean over heads; sums to at most 1 per slice.

        What is missing to 1 went to the class token itself and to registers.

        Raises:
            ModelError: the backbone is no vision transformer with a class token.
        """
        last = find_attentions(self.backbone, self.config.backbone)[-1]
        if getattr(self.backbone, "cls_token", None) is None:
            raise ModelError(f"{self.config.backbone} has no class token")
        maps = []
        with capture_attention([last]) as seen:
            for batch in self._split(images):
                self._run_tokens(batch)
                maps.append(seen.pop()[:, :, 0, self.num_prefix_tokens :].mean(1).unflatten(1, self.grid).float())
        return torch.cat(maps) if maps else images.new_zeros((0, *self.grid))

    @torch.no_grad()
    def roll_out_tokens(self, images: Float[Tensor, "slice 3 height width"]) -> Float[Tensor, "slice token"]:
        """Attention rollout: the share of each input token in the slice's vector; each row sums to 1, float64.

        One picture at a time, for all layers' weights are held at once.

        Raises:
            ModelError: the backbone is no vision transformer whose attention can be seen.
        """
        attentions = find_attentions(self.backbone, self.config.backbone)
        start = self.token_weights().to(images.device)
        rows = []
        with capture_attention(attentions) as seen:
            for picture in (one for batch in self._split(images) for one in batch.split(1)):
                seen.clear()
                self._run_tokens(picture)
                rows.append(roll_out(seen, start))
        return torch.cat(rows) if rows else images.new_zeros((0, len(start)))

    def token_weights(self) -> Float[Tensor, " token"]:
        """How the readout weighs the last tokens: "cls" the first alone, "mean" all alike, "grid" patches alike.

        Raises:
            ModelError: the backbone has no tokens, or a readout that is no mean of them.
        """
        self._require_tokens()
        prefix, num_patches = self.num_prefix_tokens, self.grid[0] * self.grid[1]
        weights = torch.zeros(prefix + num_patches, dtype=torch.float64)
        weights[{"cls": slice(0, 1), "grid": slice(prefix, None)}.get(self.config.readout, slice(None))] = 1
        return weights / weights.sum()

    @property
    def num_prefix_tokens(self) -> int:
        """Class token and registers, which come before the patches."""
        return int(self.backbone.num_prefix_tokens)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a picture."""
        rows, columns = self.backbone.patch_embed.grid_size
        return int(rows), int(columns)

    def hash_weights(self) -> str:
        """SHA-256 (hex) of the backbone's tensors as they are now."""
        return encoder_weights.hash_tensors(self.backbone.state_dict())

    def fingerprint(self, slices: SlicePlan) -> str:
        """SHA-256 (hex) of all that decides the vectors of a volume: pictures, backbone, readout, statistics, weights.

        The tensors count, not where they came from: the same weights by name and by file give the same fingerprint.
        """
        parts = {"slices": slices.fingerprint(), **self._describe_reading(), "weights": self.hash_weights()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What to write beside vectors and checkpoints: readable, JSON-ready, weights by hash."""
        import timm

        source = {"weights": self.config.weights, "positions": self.config.positions, "timm_version": timm.__version__}
        if self.config.weights == "random":
            source["seed"] = str(self.config.seed)
        return {**self._describe_reading(), **source, "encoder_sha256": self.hash_weights()}

    def _describe_reading(self) -> dict[str, Any]:
        reading = {
            "backbone": self.config.backbone,
            "readout": self.config.readout,
            "image_size": self.image_size,
            "channels": self.num_channels,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        # Named only where it is not what it always was, so that vectors made before there was a choice are found.
        return reading if self.config.precision == "float32" else reading | {"precision": self.config.precision}

    def _split(self, images: Tensor) -> Iterator[Tensor]:
        if not self._has_weights:
            raise ModelError(
                f"the encoder {self.config.backbone} was built without its weights",
                fix="load a checkpoint that holds them, or build with load_weights=True",
            )
        size = (3, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise ModelError("pictures do not fit the encoder", given=tuple(images.shape), expected=("slice", *size))
        return iter(images.split(self.config.batch_size)) if len(images) else iter(())

    def _run_tokens(self, images: Tensor) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        normalised = (images - mean) / std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            tokens = self.backbone.forward_features(normalised.to(dtype))
        return tokens if self.config.precision == "float32" else tokens.float()

    def read_out(self, tokens: Float[Tensor, "slice token channel"]) -> Float[Tensor, "slice vector"]:
        """The vectors that the readout makes of what the backbone gives."""
        if self.config.readout == "pool":
            return self.backbone.forward_head(tokens, pre_logits=True)
        if self.config.readout == "grid":
            return tokens[:, int(self.backbone.num_prefix_tokens) :].flatten(1)
        return tokens[:, 0] if self.config.readout == "cls" else tokens.mean(1)

    def _require_tokens(self) -> None:
        if self.config.readout == "pool" or not hasattr(self.backbone, "num_prefix_tokens"):
            given = f'readout "{self.config.readout}"'
            raise ModelError(f"{self.config.backbone} gives no tokens here", given=given, expected="a transformer")


def _build_backbone(config: SliceEncoderConfig, image_size: int, *, load_weights: bool) -> backbones.Backbone:
    name, readout = config.backbone, config.readout
    if config.weights == "random" or not load_weights:
        return backbones.create_random_backbone(name, readout, image_size, config.seed)
    if config.weights == "file":
        path = Path(str(config.weights_file))
        encoder_weights.check_file(path, str(config.weights_sha256))
    else:
        path = encoder_weights.find_hub_file(name)
    return encoder_weights.load_backbone(name, readout, image_size, path, positions=config.positions)


def _note_loaded(encoder: nn.Module, incompatible: Any) -> None:
    assert isinstance(encoder, SliceEncoder)
    if not any("backbone." in key for key in incompatible.missing_keys):
        encoder._has_weights = True
