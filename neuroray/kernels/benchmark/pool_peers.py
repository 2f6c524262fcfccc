"""Attention pooling as others write it: by volume, padded, and as attention with one query per volume."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.benchmark.cases import Inputs, PoolCase
from neuroray.kernels.benchmark.contestants import Contestant
from neuroray.kernels.benchmark.machine import count_free_bytes

EDGES = "edges"


def list_pool_peers(case: PoolCase, device: torch.device) -> list[Contestant]:
    """Peers in torch; the last needs a compiler for the GPU."""
    compiled = None if device.type == "cuda" else "compiled for GPUs only"
    too_large = _find_padding_obstacle(case, device)
    return [
        Contestant(name="loop over volumes (eager)", run=_run_loop, prepare=_note_edges),
        Contestant(
            name="padded to the longest volume (eager)", run=_run_padded, prepare=_note_edges, obstacle=too_large
        ),
        Contestant(name="SDPA, padded and masked", run=_run_sdpa, prepare=_note_edges, obstacle=too_large),
        Contestant(
            name="flex_attention, one query per volume",
            run=_FlexAttention(),
            prepare=_note_edges,
            obstacle=compiled,
            remark="block mask made beforehand",
        ),
    ]


def _note_edges(inputs: Inputs) -> Inputs:
    """Offsets on the CPU besides, so that no peer waits for the device in what is timed."""
    return inputs | {EDGES: inputs["offsets"].cpu()}


def _find_padding_obstacle(case: PoolCase, device: torch.device) -> str | None:
    needed = 4 * len(case.lengths) * max(case.lengths) * case.channels * case.dtype.itemsize
    free = count_free_bytes(device)
    return None if needed < 0.8 * free else f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free"


def _project(inputs: Inputs, h: Tensor) -> Tensor:
    value = torch.tanh(functional.linear(h, inputs["V"], inputs["bias_v"]))
    return value * torch.sigmoid(functional.linear(h, inputs["U"], inputs["bias_u"]))


def _run_loop(inputs: Inputs) -> Tensor:
    h, pooled = inputs["h"], []
    for start, stop in zip(inputs[EDGES][:-1].tolist(), inputs[EDGES][1:].tolist(), strict=True):
        rows = h[start:stop]
        weights = torch.softmax(functional.linear(_project(inputs, rows), inputs["w"]).float(), 0)
        pooled.append(weights.T.to(h.dtype) @ rows)
    return torch.stack(pooled)


def _pad(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Rows as `volume row channel`, and True where there is one."""
    h, edges = inputs["h"], inputs[EDGES]
    lengths = edges.diff().to(h.device)
    there = torch.arange(int(edges.diff().max()), device=h.device) < lengths[:, None]
    padded = h.new_zeros(*there.shape, h.shape[1])
    places = torch.arange(len(h), device=h.device)
    volume = torch.repeat_interleave(torch.arange(len(lengths), device=h.device), lengths, output_size=len(h))
    return padded.index_put((volume, places - inputs["offsets"][volume]), h), there


def _run_padded(inputs: Inputs) -> Tensor:
    h, there = _pad(inputs)
    scores = functional.linear(_project(inputs, h), inputs["w"]).float().masked_fill(~there[..., None], -torch.inf)
    # A volume without rows would be all NaN.
    weights = torch.softmax(scores, 1).masked_fill(~there[..., None], 0.0)
    return weights.transpose(1, 2).to(h.dtype) @ h


def _run_sdpa(inputs: Inputs) -> Tensor:
    h, there = _pad(inputs)
    query = inputs["w"].expand(len(h), 1, -1, -1)
    mask = there[:, None, None]
    keys = _project(inputs, h)[:, None]
    return functional.scaled_dot_product_attention(query, keys, h[:, None], attn_mask=mask, scale=1.0)[:, 0]


class _FlexAttention:
    """One query per volume over all rows, each seen by its own volume; keys are padded to a power of two."""

    def __init__(self) -> None:
        self._attend: Any
        self._mask: Any = None

    def __call__(self, inputs: Inputs) -> Tensor:
        if self._mask is None:
            self._build(inputs)
        h, volumes = inputs["h"], inputs["offsets"].numel() - 1
        keys = functional.pad(_project(inputs, h), (0, _missing(inputs["w"].shape[1])))[None, None]
        query = functional.pad(inputs["w"], (0, _missing(inputs["w"].shape[1]))).expand(1, volumes, -1)[None]
        values = functional.pad(h, (0, _missing(h.shape[1])))[None, None]
        return self._attend(query, keys, values, block_mask=self._mask, scale=1.0)[0, 0, :, None, : h.shape[1]]

    def _build(self, inputs: Inputs) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        h, lengths = inputs["h"], inputs["offsets"].diff()
        volume = torch.repeat_interleave(torch.arange(len(lengths), device=h.device), lengths)

        def same(batch: Tensor, head: Tensor, query: Tensor, row: Tensor) -> Tensor:
            del batch, head
            return volume[row] == query

        self._mask = create_block_mask(same, None, None, len(lengths), len(h), device=str(h.device))
        self._attend = torch.compile(flex_attention)


def _missing(size: int) -> int:
    return 2 ** math.ceil(math.log2(size)) - size
