"""Causal convolution as others compute it: torch's conv1d and SiLU, and the package causal-conv1d on CUDA."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.benchmark.cases import ConvCase, Inputs
from neuroray.kernels.benchmark.contestants import Contestant


def list_conv_peers(case: ConvCase, device: torch.device) -> list[Contestant]:
    """Each on channels that lie first, as it likes them, and on channels that lie last, as projections leave them."""
    obstacle = _find_package_obstacle(device)
    turned: dict[str, Any] = {"prepare": _put_channels_first, "restore": _put_channels_last}
    # Its kernel for channels that lie last reads 8 of them at a time.
    uneven = f"{case.channels} channels are no multiple of 8" if case.channels % 8 else None
    return [
        Contestant(name="conv1d + SiLU (torch), channels first", run=_run_conv1d, **turned),
        Contestant(name="conv1d + SiLU (torch), views of channels last", run=run_conv1d_on_views),
        Contestant(name="causal-conv1d, channels first", run=_run_package, obstacle=obstacle, **turned),
        Contestant(name="causal-conv1d, channels last", run=_run_package_on_views, obstacle=obstacle or uneven),
    ]


def run_conv1d_on_views(inputs: Inputs) -> Tensor:
    """Torch's conv1d and SiLU, with the axes that it wants made by views; it may copy."""
    return _run_conv1d(_turn(inputs)).transpose(1, 2)


def _run_conv1d(inputs: Inputs) -> Tensor:
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    channels, taps = weight.shape
    # Padded at both ends, as conv1d can; what the end's padding adds is cut off.
    padded = functional.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=channels)
    return functional.silu(padded[..., : x.shape[-1]])


def _run_package(inputs: Inputs) -> Tensor:
    causal_conv1d_fn: Any = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return causal_conv1d_fn(inputs["x"], inputs["weight"], inputs["bias"], activation="silu")


def _run_package_on_views(inputs: Inputs) -> Tensor:
    return _run_package(_turn(inputs)).transpose(1, 2)


def _turn(inputs: Inputs) -> Inputs:
    return inputs | {"x": inputs["x"].transpose(1, 2)}


def _put_channels_first(inputs: Inputs) -> Inputs:
    return inputs | {"x": inputs["x"].transpose(1, 2).contiguous()}


def _put_channels_last(name: str, tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2) if name in ("output", "x") else tensor


def _find_package_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "causal-conv1d runs on CUDA only"
    if importlib.util.find_spec("causal_conv1d") is None:
        return "the package causal-conv1d is not installed"
    try:
        importlib.import_module("causal_conv1d")
    except Exception as error:
        return f"import causal_conv1d: {type(error).__name__}: {error}".splitlines()[0]
    return None
