"""The benchmark: its tables have every column, wrong kernels are refused, and peers compute what we compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuroray.kernels.attention_pool import api as pool_api
from neuroray.kernels.benchmark import contestants, judge, measure, scan_peers, table
from neuroray.kernels.benchmark.__main__ import main
from neuroray.kernels.benchmark.cases import Case, PoolCase, ScanCase, list_cases, list_layers
from neuroray.kernels.causal_conv import api as conv_api
from neuroray.kernels.selective_scan import api as scan_api

CPU = torch.device("cpu")
SCAN, SCAN_BOTH, POOL, CONV = list_cases("all", "cpu", quick=True)


@pytest.fixture(autouse=True)
def _only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what needs a compiler or a GPU: this is about the benchmark, not about them."""
    for api in (scan_api, pool_api, conv_api):
        for name in api.IMPLEMENTATIONS.keys() - {"reference", "torch"}:
            absent = api.IMPLEMENTATIONS[name]._replace(find_obstacle=lambda device, dtype: "not in this test")
            monkeypatch.setitem(api.IMPLEMENTATIONS, name, absent)


@pytest.fixture(autouse=True)
def _little_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroray.kernels.benchmark.machine.COPIED_BYTES", 2**20)


def run(folder: Path, *options: str) -> tuple[int, str, dict]:
    code = main(["--quick", "--device", "cpu", "--repeats", "2", "--out", str(folder), *options])
    (page,) = folder.glob("kernels-*.md")
    return code, page.read_text(), json.loads(page.with_suffix(".json").read_text())


def test_a_run_fills_every_column(tmp_path: Path) -> None:
    code, page, content = run(tmp_path)
    assert code == 0
    assert "| " + " | ".join(table.COLUMNS) + " |" in page
    assert {"machine", "command", "date", "torch", "threads"} <= content["header"].keys()
    whole = [row for row in content["rows"] if row["name"] == "ours: torch" and row["step"] == "forward and backward"]
    assert [row["case"] for row in whole] == [SCAN.label, SCAN_BOTH.label, POOL.label, CONV.label]
    for row in whole:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio"] == 1
        assert row["deterministic"] is True
        assert row["bound_share"] > 0
        # Float32 sums of some hundred terms.
        assert max(row["output_error"], row["gradient_error"]) < 1e-5
    assert all(f"| {row['name']} |" in page or f"| **{row['name']}** |" in page for row in content["rows"])


def test_who_is_left_out_has_a_row_that_says_why(tmp_path: Path) -> None:
    _, _, content = run(tmp_path, "--op", "scan")
    rows = [row for row in content["rows"] if row["name"].startswith("mamba-ssm")]
    assert len(rows) == 18, "three ways, three passes, two cases"
    assert all(row["remark"] == "left out: mamba-ssm runs on CUDA only" for row in rows)
    assert all(row["median_ms"] is None for row in rows)


def test_wrong_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pool_api.IMPLEMENTATIONS["torch"]

    def pool_wrongly(inputs: pool_api.PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
        pooled, weights, log_sum_exp = right.pool(inputs)
        return pooled * (1 + 1e-4), weights, log_sum_exp

    monkeypatch.setitem(pool_api.IMPLEMENTATIONS, "hasty", right._replace(pool=pool_wrongly))
    code, page, content = run(tmp_path, "--op", "pool")
    assert code == 1
    assert [one["passed"] for one in content["gate"] if one["name"] == "ours: hasty"] == [False, False]
    assert [one["passed"] for one in content["gate"] if one["name"] == "ours: torch"] == [True, True]
    rows = [row for row in content["rows"] if row["name"] == "ours: hasty"]
    assert all(row["median_ms"] is None and "refused" in row["remark"] for row in rows)
    assert "| **no** |" in page


def test_wrong_gradients_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scan_api.IMPLEMENTATIONS["torch"]

    def forget_gradients(inputs: scan_api.ScanInputs) -> tuple[Tensor, Tensor]:
        return right.scan(inputs._replace(delta=inputs.delta * 2 - inputs.delta.detach()))

    monkeypatch.setitem(scan_api.IMPLEMENTATIONS, "torch", right._replace(scan=forget_gradients))
    judged = judge.judge([SCAN], CPU)
    assert [(one.passed, one.worst) for one in judged] == [(False, "delta"), (False, "delta")]


def test_an_implementation_that_raises_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(inputs: pool_api.PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
        raise RuntimeError("no such instruction")

    broken = pool_api.IMPLEMENTATIONS["torch"]._replace(pool=raise_error)
    monkeypatch.setitem(pool_api.IMPLEMENTATIONS, "torch", broken)
    judged = judge.judge([POOL], CPU)
    assert not any(one.passed for one in judged)
    assert judged[0].worst == "RuntimeError: no such instruction"


@pytest.mark.parametrize("case", [SCAN, SCAN_BOTH, POOL, CONV], ids=lambda case: case.label)
def test_peers_compute_the_same_thing(case: Case) -> None:
    inputs = case.draw(torch.Generator().manual_seed(0))
    peers = measure.list_peers(case, CPU)
    (ours,) = contestants.list_ours(case, CPU)
    factors = judge.draw_factors(ours.run(inputs))
    output, gradients = judge.run_exactly(case, inputs, factors, "reference")
    there = [one for one in peers if one.obstacle is None]
    assert there
    for peer in there:
        given, found = judge.differentiate(peer, inputs, factors)
        # Float32 sums of some hundred terms; peers may add in any order.
        assert judge.measure_error(given, output) < 1e-5, peer.name
        assert judge.find_worst(found, gradients)[1] < 1e-5, peer.name


def test_padding_a_scan_beforehand_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # mamba-ssm itself needs a GPU; its layout, padding and flips are ours, and here the loop stands in for it.
    monkeypatch.setattr(scan_peers, "PADDING", 16)
    monkeypatch.setattr(scan_peers, "_run_mamba_ssm", scan_peers._run_loop)
    case = replace(SCAN_BOTH, tokens=21, channels=3)
    assert isinstance(case, ScanCase)
    inputs = case.draw(torch.Generator().manual_seed(0))
    factors = judge.draw_factors(inputs["u"])
    output, gradients = judge.run_exactly(case, inputs, factors, "reference")
    peers = [one for one in scan_peers.list_scan_peers(case, CPU) if one.name.startswith("mamba-ssm")]
    assert len(peers) == 3
    for peer in peers:
        given, found = judge.differentiate(peer, inputs, factors)
        assert judge.measure_error(given, output) < 1e-5, peer.name
        assert judge.find_worst(found, gradients)[1] < 1e-5, peer.name


def test_a_backward_that_grows_with_the_square_is_left_out_where_it_is_long() -> None:
    assert isinstance(SCAN, ScanCase)
    short, long = (scan_peers.list_scan_peers(replace(SCAN, tokens=tokens), CPU)[0] for tokens in (1024, 1025))
    assert short.backward_obstacle is None
    assert "quadratic in L" in (long.backward_obstacle or "")
    assert long.obstacle is None


def test_peers_that_would_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(SCAN, ScanCase)
    monkeypatch.setattr(scan_peers, "count_free_bytes", lambda device: 2**10)
    assert "GiB" in (scan_peers.list_scan_peers(SCAN, CPU)[0].obstacle or "")


def test_every_listed_shape_can_be_drawn_small() -> None:
    for device in ("cpu", "cuda"):
        for case in list_cases("all", device, quick=False):
            small = replace(case, lengths=(3, 1)) if isinstance(case, PoolCase) else replace(case, tokens=3, channels=2)
            inputs = small.draw(torch.Generator().manual_seed(0))
            assert all(value.isfinite().all() for value in inputs.values())
            assert next(iter(inputs.values())).dtype == case.dtype


def test_a_layers_parts_have_shares_of_the_whole(tmp_path: Path) -> None:
    code, page, content = run(tmp_path, "--op", "layer")
    assert code == 0
    assert not content["rows"]
    assert "| " + " | ".join(table.PART_COLUMNS) + " |" in page
    (layer,) = list_layers("layer", "cpu", quick=True)
    for step in ("forward", "forward and backward"):
        parts = [part for part in content["parts"] if part["step"] == step]
        assert [part["name"] for part in parts] == [
            *("in_proj", "conv + SiLU", "conv + SiLU", "x_proj + dt_proj", "scan", "out_proj", "add + RMSNorm")
        ]
        assert all(part["case"] == layer.label and part["median_ms"] > 0 for part in parts)
        own = [part for part in parts if part["who"] != "torch's conv1d"]
        assert sum(part["share"] for part in own) == pytest.approx(1)
        (peer,) = [part for part in parts if part not in own]
        others = sum(part["median_ms"] for part in own if part["name"] != "conv + SiLU")
        assert peer["share"] == pytest.approx(peer["median_ms"] / (others + peer["median_ms"]))


def test_a_wrong_kernel_is_refused_in_the_layer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = conv_api.IMPLEMENTATIONS["torch"]
    wrong = right._replace(convolve=lambda inputs: right.convolve(inputs) * (1 + 1e-4))
    monkeypatch.setitem(conv_api.IMPLEMENTATIONS, "torch", wrong)
    code, _, content = run(tmp_path, "--op", "layer")
    assert code == 1
    refused = [part for part in content["parts"] if part["median_ms"] is None]
    assert [(part["who"], part["remark"]) for part in refused] == [
        ("ours: torch", "left out: wrong answers: refused")
    ] * 2
    assert all(part["share"] is None for part in content["parts"] if part["who"] == "torch")


def test_the_layers_of_either_device_are_those_of_the_models() -> None:
    (cpu,), (gpu,) = (list_layers("all", device, quick=False) for device in ("cpu", "cuda"))
    assert (cpu.tokens, cpu.channels, cpu.dtype) == (4096, 1024, torch.float32)
    assert (gpu.tokens, gpu.channels, gpu.dtype) == (50_401, 1024, torch.bfloat16)
    assert gpu.rank == 32
    assert not list_layers("scan", "cpu", quick=False)


def test_nothing_to_time_is_an_error(tmp_path: Path) -> None:
    assert main(["--quick", "--device", "cpu", "--only", "L=7777", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
