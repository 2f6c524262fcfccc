"""`neuroray check-ageing`: each of the three experiments can pass and can fail, and says by how much."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.ageing_run import train_ageing_run
from contracts.brain_cohort import write_brain_cohort

from neuroray.jobs import check_ageing
from neuroray.jobs.cli import UsageError
from neuroray.platform.data.tokens import load_tokenizer, open_tokens, read_tokens
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.generate.overfit import choose_rate, overfit_pair
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its card allows all ages, so that everybody on the small test side can be told older."""
    folder = train_ageing_run(tmp_path_factory.mktemp("trained"), num_people=8)
    path = folder / "run" / "model" / "config.json"
    card = json.loads(path.read_text()) | {"age_range_years": [40.0, 95.0], "gap_range_years": [-8.0, 8.0]}
    path.write_text(json.dumps(card))
    return folder


def check(trained: Path, out: Path, run: str = "run", **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = {"people": 3, "steps": 400, "rate": 3e-3, **changes}
    answer = check_ageing.run(check_ageing.Args(run=str(trained / run), out=str(out), **asked))
    return answer, {one["name"]: one for one in answer["checks"]}


def test_a_poor_run_fails_what_it_is_poor_at_and_tells_how_much(trained: Path, tmp_path: Path) -> None:
    answer, checks = check(trained, tmp_path)
    assert list(checks) == ["reconstruction", "one pair by heart", "ages"]
    assert answer["exit_code"] == 1
    assert not answer["passed"]
    poor = checks["reconstruction"]
    assert not poor["passed"]
    assert poor["mean_psnr_db"] == pytest.approx(sum(poor["psnr_db"]) / len(poor["psnr_db"]))
    assert f"{poor['mean_psnr_db']:.2f} dB" in answer["text"]
    assert "FAIL  reconstruction" in answer["text"]
    assert f"likely fix: {poor['fix']}" in answer["text"]
    assert "train the first stage longer" in poor["fix"]
    # A transformer of one block and a width of 16 learns 160 tokens by heart; most of them differ between the visits.
    heart = checks["one pair by heart"]
    assert heart["passed"]
    assert heart["fix"] is None
    assert heart["wrong"] == 0
    assert heart["num_changed"] > 0
    assert heart["curve"][0][1] < 0.5 < heart["curve"][-1][1]
    ages = checks["ages"]
    shares = [all(b > a for a, b in zip(one["ml"], one["ml"][1:], strict=False)) for one in ages["people"]]
    assert ages["rising_share"] == pytest.approx(sum(shares) / len(shares))
    assert ages["passed"] is (ages["rising_share"] >= 0.95)
    assert json.loads((tmp_path / "check.json").read_text())["checks"] == json.loads(json.dumps(answer["checks"]))
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_limits_decide(trained: Path, tmp_path: Path) -> None:
    answer, checks = check(trained, tmp_path, min_psnr_db=1.0, least_rising=0.0, steps=400)
    assert checks["reconstruction"]["passed"]
    assert checks["ages"]["passed"]
    assert answer["exit_code"] == 0
    _, checks = check(trained, tmp_path, steps=10)
    assert not checks["one pair by heart"]["passed"]
    assert checks["one pair by heart"]["wrong"] > 0


def test_of_a_tokenizer_the_reconstruction_alone_is_checked(trained: Path, tmp_path: Path) -> None:
    answer, checks = check(trained, tmp_path, run="tokenizer")
    assert list(checks) == ["reconstruction"]
    assert answer["exit_code"] == 1


def test_a_transformer_without_the_previous_scan_learns_a_pair_too_and_the_same_twice(trained: Path) -> None:
    store, found = ScanStore(trained / "store"), load_tokenizer(str(trained / "tokenizer"))
    cache = open_tokens(store, found)
    names = ["sub-003_ses-01_T1w", "sub-003_ses-02_T1w"]
    previous, target = (
        torch.from_numpy(read_tokens(cache, name, num_tokens=160, num_codes=24))[None] for name in names
    )
    card = load_weights(trained / "run" / "model")[1]
    config = dataclasses.replace(NeuroARConfig.from_json(card["model"]), previous="none")
    first, again = (
        overfit_pair(config, found.model.quantiser, previous, target, (60.0, 66.0), num_steps=400, rate=3e-3)
        for _ in range(2)
    )
    assert first.is_exact
    assert first == again


def test_a_nearest_head_learns_a_pair_though_its_run_was_trained_with_much_hidden(trained: Path) -> None:
    store, found = ScanStore(trained / "store"), load_tokenizer(str(trained / "tokenizer"))
    cache = open_tokens(store, found)
    previous, target = (
        torch.from_numpy(read_tokens(cache, f"sub-003_ses-0{visit}_T1w", num_tokens=160, num_codes=24))[None]
        for visit in (1, 2)
    )
    card = load_weights(trained / "run" / "model")[1]
    config = dataclasses.replace(NeuroARConfig.from_json(card["model"]), head="nearest", dropout=0.5)
    # Without the tokenizer's codes to compare with, every code would be as near as any other.
    learned = overfit_pair(
        config, found.model.quantiser, previous, target, (60.0, 66.0), num_steps=400, rate=choose_rate(config)
    )
    assert learned.is_exact


def test_wide_transformers_learn_a_pair_by_smaller_steps() -> None:
    narrow, wide = (NeuroARConfig(width=width, num_heads=2) for width in (32, 1024))
    assert choose_rate(narrow) > 5 * choose_rate(wide)


def test_nothing_to_check_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing would be checked"):
        check(trained, tmp_path, people=0)


def test_a_store_that_lacks_scans_of_the_split_is_refused(trained: Path, tmp_path: Path) -> None:
    other = write_brain_cohort(tmp_path / "store", num_people=2)
    with pytest.raises(EvaluationError, match=r"scans of the split.*are not in the store.*--store"):
        check(trained, tmp_path / "out", store=other.uri)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
