"""The benchmark of BrainMT's steps: peers that compute the same, lines that fit, parts that are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.benchmark import peers, report, scaling, steps
from neuroray.platform.models.brainmt.benchmark.__main__ import main
from neuroray.platform.models.brainmt.benchmark.parts import find_part
from neuroray.platform.models.brainmt.benchmark.scaling import Point, ScalingError, fit_polynomial
from neuroray.platform.models.brainmt.mamba import MambaMixer

CPU = torch.device("cpu")
TINY = BrainMTConfig(grid_shape=(17, 20, 16), num_frames=7, width=8, mamba_depth=2, attention_depth=1)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "one"])
@pytest.mark.parametrize("scan", [peers.scan_by_indexing, peers.scan_by_steps])
def test_a_peer_s_mixer_gives_our_answer_and_gradients(scan: peers.Scan, bidirectional: bool):
    config = BrainMTConfig(width=8, bidirectional=bidirectional)
    ours = MambaMixer(config)
    theirs = peers.PeerMixer(ours, scan)
    x, factors = torch.randn(2, 2, 13, 32).unbind(0)
    results = []
    for mixer in (ours, theirs):
        ours.zero_grad(set_to_none=True)
        output = mixer(x)
        (output * factors).sum().backward()
        results.append((output, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}))
    (expected, gradients), (given, found) = results
    # Float32 sums of some dozen terms in another order.
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)
    assert gradients.keys() == found.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_contestant_that_answers_wrongly_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    def scan_wrongly(*given: torch.Tensor) -> torch.Tensor:
        return 1.5 * peers.scan_by_steps(*given)

    def raise_error(model: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("no such kernel")

    listed = [
        peers.Contestant(name="ours"),
        peers.Contestant(name="right", change=lambda model: peers._with_scan(model, peers.scan_by_steps)),
        peers.Contestant(name="wrong", change=lambda model: peers._with_scan(model, scan_wrongly)),
        peers.Contestant(name="broken", change=raise_error),
        peers.Contestant(name="absent", obstacle="not installed"),
    ]
    monkeypatch.setattr(steps, "list_contestants", lambda *args, **named: listed)
    case = steps.StepCase(name="tiny", config=TINY, num_frames=7)
    rows = {row.name: row for row in steps.compare_steps(case, CPU, rounds=2)}
    assert (rows["ours"].ratio, rows["ours"].rounds, rows["ours"].output_error) == (1.0, 2, 0.0)
    right = rows["right"]
    assert right.ratio is not None
    assert right.output_error is not None
    assert 0 < right.output_error < 1e-4
    assert rows["wrong"].ratio is None
    assert rows["wrong"].remark.startswith("left out: wrong answers")
    assert rows["broken"].remark == "left out: RuntimeError: no such kernel"
    assert rows["absent"].remark == "left out: not installed"


def test_what_is_left_out_on_a_cpu_says_why():
    listed = {one.name: one for one in peers.list_contestants(CPU, num_tokens=301, longest_quadratic=300)}
    assert next(iter(listed)) == "ours"
    assert "quadratic: not run above 300" in str(listed[next(n for n in listed if "transformers" in n)].obstacle)
    assert "CUDA only" in str(listed[next(n for n in listed if n.startswith("released"))].obstacle)


def test_lines_are_fitted_and_their_residuals_told():
    line = fit_polynomial([1, 2, 4, 8], [3, 5, 9, 17], 1)
    assert line.coefficients == pytest.approx((1, 2))
    assert (line.r2, line.worst) == pytest.approx((1, 0), abs=1e-9)
    # The mean of 1, 2, 6 is 3, the slope 2.5: residuals 0.5, -1, 0.5 of a spread of 14.
    bent = fit_polynomial([0, 1, 2], [1, 2, 6], 1)
    assert bent.r2 == pytest.approx(1 - 1.5 / 14)
    assert bent.worst == pytest.approx(0.5)
    with pytest.raises(ScalingError, match="too few points for a line; given 2; expected 3 or more"):
        fit_polynomial([1, 2], [1, 2], 1)


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("aten::mkldnn_convolution", "conv stage"),
        ("aten::convolution_backward", "conv stage"),
        ("_Scan", "scan"),
        ("_ConvolutionBackward", "scan"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::addmm", "linear maps"),
        ("aten::native_layer_norm", "rest"),
        ("aten::copy_", "rest"),
    ],
)
def test_operations_belong_to_parts(operation: str, part: str):
    assert find_part(operation) == part


def test_a_point_is_measured_in_a_process_of_its_own():
    point = scaling.measure_point(TINY, 9, device="cpu", bf16=False, repeats=2)
    assert (point.num_frames, point.num_tokens, len(point.seconds)) == (9, 1 + 9 * 4, 2)
    assert point.peak_bytes > 0
    assert min(point.seconds) > 0


def test_the_report_tells_the_line_and_keeps_the_published_apart(tmp_path: Path):
    points = [
        Point(
            num_frames=t,
            num_tokens=t,
            peak_bytes=10**6 * (7 if t == 5 else 1 + t),
            predicted_bytes=900 + 50 * t,
            largest="convolutions" if t == 5 else "last Mamba layer",
            seconds=(t,),
            flops=t,
        )
        for t in (5, 10, 20, 40, 80)
    ]
    findings = report.Findings(header={"machine": "made up"}, scaling_case="a model", points=points)
    findings.predicted = {200: 6_000_000_000, 800: 20_000_000_000}
    path = report.write_report(tmp_path, "made", findings)
    page = path.read_text()
    assert "in the convolutions: 1.0 MB + 1.000 MB per frame, R2 1.00000, largest residual 0.0%" in page
    assert "| 200 | 6.0 | 40.0 | does not fit 80 |" in page
    assert "| 800 | 20.0 | - | - |" in page
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "made.json").read_text())["points"][0]["peak_bytes"] == 7_000_000


@pytest.mark.slow
def test_the_quick_run_writes_all_of_its_parts(tmp_path: Path):
    assert main(["--quick", "--device", "cpu", "--parts", "parts", "--out", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("*.md")
    content = json.loads(page.with_suffix(".json").read_text())
    for step in ("forward", "backward"):
        rows = [row for row in content["parts"] if row["step"] == step]
        assert [row["name"] for row in rows] == ["conv stage", "scan", "attention", "linear maps", "rest"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert all(row["seconds"] > 0 for row in rows)
