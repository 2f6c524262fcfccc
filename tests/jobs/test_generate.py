"""`neuroray generate` on a tiny run: files on the scan's own grid, the same bytes twice, differences, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from contracts.ageing_run import ages_of, train_ageing_run, write_ball
from PIL import Image

from neuroray.config import ConfigError
from neuroray.jobs import cli, generate
from neuroray.platform.data.plan import PlanError
from neuroray.platform.generate.ages import GenerationError
from neuroray.storage.checkpoint import load_weights, save_weights
from neuroray.storage.profiles.profile import ProfileError
from neuroray.storage.scan import ScanError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a transformer of a few steps: what they say is nonsense, how it is said is not."""
    return train_ageing_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ball(tmp_path_factory.mktemp("scan") / "brain.nii.gz")


def ask(trained: Path, scan: Path, out: Path, **changes: Any) -> dict[str, Any]:
    low, high = ages_of(trained / "run")
    asked: dict[str, Any] = {"age_years": low, "ages": (high, (low + high) / 2), **changes}
    return generate.run(generate.Args(run=str(trained / "run"), scan=str(scan), out=str(out), **asked))


@pytest.fixture(scope="module")
def asked(trained: Path, scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What came of one call, for tests that only look at it."""
    out = tmp_path_factory.mktemp("asked")
    return out, ask(trained, scan, out)


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_each_age_is_a_file_on_the_scans_own_grid_and_in_its_units(
    trained: Path, scan: Path, asked: tuple[Path, dict[str, Any]]
) -> None:
    out, answer = asked
    low, high = ages_of(trained / "run")
    middle = (low + high) / 2
    assert [one["age_years"] for one in answer["ages"]] == [high, middle]
    names = [one["files"]["volume"] for one in answer["ages"]]
    assert names == [f"age_{high:.6g}.nii.gz", f"age_{middle:.6g}.nii.gz"]
    given = nib.load(scan)
    brain = read(scan) != 0
    for one in answer["ages"]:
        for file in one["files"].values():
            made = nib.load(out / file)
            assert made.shape == given.shape
            assert np.array_equal(made.affine, given.affine)
        values = read(out / one["files"]["volume"])
        # Within the percentiles of the scan that became -1 and 1, and nothing where the scan has nothing.
        bounds = np.percentile(read(scan)[brain], [0.5, 99.5])
        assert bounds[0] - 1e-2 <= values[brain].min() <= values[brain].max() <= bounds[1] + 1e-2
        assert not values[~brain].any()
    assert json.loads((out / "generate.json").read_text())["ages"] == answer["ages"]
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_the_difference_is_the_age_minus_the_reconstruction_and_says_so(
    scan: Path, asked: tuple[Path, dict[str, Any]]
) -> None:
    out, answer = asked
    assert "reconstruction.nii.gz" in answer["difference_against"]
    base = read(out / "reconstruction.nii.gz")
    for one in answer["ages"]:
        change = read(out / one["files"]["difference"])
        assert np.array_equal(change, read(out / one["files"]["volume"]) - base)
        told = np.abs(change[read(scan) != 0]).mean(dtype=np.float64)
        assert one["mean_absolute_difference"] == pytest.approx(told, rel=1e-6)


def test_the_reconstruction_is_the_tokenizers(scan: Path, asked: tuple[Path, dict[str, Any]]) -> None:
    out, answer = asked
    error = np.abs(read(out / "reconstruction.nii.gz") - read(scan))[read(scan) != 0]
    assert answer["reconstruction"]["mean_absolute_error"] == pytest.approx(error.mean(dtype=np.float64), rel=1e-5)
    bounds = np.percentile(read(scan)[read(scan) != 0], [0.5, 99.5])
    # Clipped at the percentiles in the one and not in the other, hence about.
    share = np.square(error / (bounds[1] - bounds[0])).mean()
    assert answer["reconstruction"]["psnr_db"] == pytest.approx(-10 * math.log10(share), abs=0.5)


def test_greedy_twice_is_the_same_bytes_whatever_other_ages_are_asked_for(
    trained: Path, scan: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, first = asked
    ask(trained, scan, tmp_path / "again")
    ask(trained, scan, tmp_path / "alone", ages=(ages_of(trained / "run")[1],), seed=5)
    name = first["ages"][0]["files"]["volume"]
    whole = {path.name for path in out.iterdir()} - {"run.json", "generate.json"}
    assert {name, "strip.png", "ages.gif", "reconstruction.nii.gz"} < whole
    for file in whole:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_samples_have_a_mean_and_a_spread_that_follow_the_seed(trained: Path, scan: Path, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {"ages": (ages_of(trained / "run")[1],), "temperature": 1.5, "top_k": 12, "top_p": 0.98}
    answer = ask(trained, scan, tmp_path / "one", samples=3, **drawn)
    ask(trained, scan, tmp_path / "same", samples=3, **drawn)
    ask(trained, scan, tmp_path / "other", samples=3, seed=1, **drawn)
    files = answer["ages"][0]["files"]
    spread = read(tmp_path / "one" / files["spread"])
    assert spread.shape == read(scan).shape
    assert spread.max() > 0 <= spread.min()
    assert not spread[read(scan) == 0].any()
    one, same, other = ((tmp_path / run / files["volume"]).read_bytes() for run in ("one", "same", "other"))
    assert one == same != other


def test_a_scan_that_the_tokenizer_cannot_draw_is_told_with_a_warning(asked: tuple[Path, dict[str, Any]]) -> None:
    _, answer = asked
    poor = answer["reconstruction"]["psnr_db"] < 25
    assert poor is any("dB, less than the 25" in one for one in answer["warnings"])
    assert poor  # of a few steps


def test_the_animation_has_a_frame_for_now_and_each_age(asked: tuple[Path, dict[str, Any]]) -> None:
    out, _ = asked
    with Image.open(out / "ages.gif") as animation:
        assert animation.n_frames == 3
    with Image.open(out / "strip.png") as strip:
        pixels = np.asarray(strip.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() > 60  # the differences are in colour
    assert (pixels.min(axis=2) > 150).any()  # and the brain is bright


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ages": (math.nan,)}, "target age is no number"),
        ({"ages": (-1.0,)}, "before birth"),
        ({"ages": (131.0,)}, "beyond any person's"),
        ({"ages": ()}, "no age is asked for"),
        ({"age_years": None}, r"is not given.*--age-years"),
        ({"age_years": math.inf}, "the age is no number"),
        ({"ages": (60.0, 60.0000001)}, "asked for twice"),
        ({"ages": (20.0,)}, r"trained on no such ages.*--allow-outside"),
        ({"age_years": 9.0}, r"a child.s, and the model was trained on adults alone; given 9 years"),
        ({"age_years": 40.0}, r"older than this person; given 40 years"),
        ({"ages": (11.0,)}, r"a child.s brain is asked for"),
        ({"samples": 2}, r"nothing is drawn.*--temperature 1"),
        ({"top_k": 3}, "nothing is drawn"),
        ({"samples": 0}, "at least one sample"),
        ({"temperature": math.nan}, "the temperature is no number"),
        ({"ages": (840.0,)}, r"840 months are 70\.0 years"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_nothing_generated(
    trained: Path, scan: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        ask(trained, scan, tmp_path, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_ages_outside_are_told_with_a_warning_where_that_is_wanted(trained: Path, scan: Path, tmp_path: Path) -> None:
    answer = ask(trained, scan, tmp_path, ages=(95.0,), allow_outside=True)
    assert any("95 years" in one and "nothing vouches" in one for one in answer["warnings"])
    assert any(
        one.startswith(f"{95 - ages_of(trained / 'run')[0]:+g} years from the scan") for one in answer["warnings"]
    )
    assert all(one in answer["text"] for one in answer["warnings"])


def test_scans_that_do_not_fit_are_refused(trained: Path, scan: Path, tmp_path: Path) -> None:
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.stack([read(scan)] * 3, axis=-1), image.affine), tmp_path / "run.nii.gz")
    bright = np.random.default_rng(1).uniform(1, 9, (40, 40, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(bright, image.affine), tmp_path / "large.nii.gz")
    flat = np.where(read(scan) != 0, 3.0, 0.0).astype(np.float32)
    nib.save(nib.Nifti1Image(flat, image.affine), tmp_path / "flat.nii.gz")
    with pytest.raises(ScanError, match="not from time series"):
        ask(trained, tmp_path / "run.nii.gz", tmp_path / "out")
    with pytest.raises(PlanError, match="does not fit the grid"):
        ask(trained, tmp_path / "large.nii.gz", tmp_path / "out")
    with pytest.raises(PlanError, match="the same everywhere"):
        ask(trained, tmp_path / "flat.nii.gz", tmp_path / "out")


def test_guidance_changes_what_is_told_and_is_recorded(
    trained: Path, scan: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, plain = asked
    answer = ask(trained, scan, tmp_path / "guided", age_guidance=9.0, previous_guidance=0.0, guidance_ramp=False)
    assert answer["sampling"]["age_guidance"] == 9.0
    assert plain["sampling"]["age_guidance"] == 1.0
    name = plain["ages"][0]["files"]["volume"]
    assert not np.array_equal(read(out / name), read(tmp_path / "guided" / name))


def test_decoded_in_slabs_the_brain_is_the_same_to_rounding(
    trained: Path, scan: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, plain = asked
    ask(trained, scan, tmp_path / "slabs", slab=3)
    name = plain["ages"][0]["files"]["volume"]
    # Values of hundreds, of which float32 rounding through the decoder moves the fifth digit.
    np.testing.assert_allclose(read(tmp_path / "slabs" / name), read(out / name), atol=0.05)
    with pytest.raises(GenerationError, match="a slab has planes"):
        ask(trained, scan, tmp_path / "none", slab=0)


def test_guidance_of_a_run_that_was_trained_with_everything_told_is_refused(
    trained: Path, scan: Path, tmp_path: Path
) -> None:
    card = load_weights(trained / "run" / "model")[1]
    save_changed(trained, tmp_path / "told", model={**card["model"], "age_dropout": 0.0})
    low, high = ages_of(trained / "run")
    asked: dict[str, Any] = {"scan": str(scan), "out": str(tmp_path / "out"), "age_years": low, "ages": (high,)}
    with pytest.raises(ConfigError, match=r"cannot be guided.*--model.age-dropout 0.1"):
        generate.run(generate.Args(run=str(tmp_path / "told" / "run"), age_guidance=2.0, **asked))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def save_changed(trained: Path, folder: Path, *, without: str = "~", **changes: Any) -> Path:
    """The model folder with another card, or without some of its weights."""
    state, card, provenance = load_weights(trained / "run" / "model")
    kept = {name: value for name, value in state.items() if not name.startswith(without)}
    save_weights(folder / "run", kept, {**card, **changes}, provenance)
    return folder


def test_models_that_are_none_or_do_not_belong_together_are_refused(trained: Path, scan: Path, tmp_path: Path) -> None:
    card = load_weights(trained / "run" / "model")[1]
    low, high = ages_of(trained / "run")
    asked: dict[str, Any] = {"scan": str(scan), "out": str(tmp_path / "out"), "age_years": low, "ages": (high,)}
    with pytest.raises(GenerationError, match=r"tokenizer alone.*neuroar/transformer"):
        generate.run(generate.Args(run=str(trained / "tokenizer"), **asked))
    with pytest.raises(GenerationError, match="no trained model here"):
        generate.run(generate.Args(run=str(tmp_path / "nowhere"), **asked))

    def ask_changed(name: str, **changes: Any) -> None:
        folder = save_changed(trained, tmp_path / name, **changes)
        generate.run(generate.Args(run=str(folder / "run"), **asked))

    with pytest.raises(GenerationError, match="the tokenizer is missing"):
        ask_changed("without", without="tokenizer.")
    tokenizer = card["tokenizer"]["model"]
    quantiser = {**tokenizer["quantiser"], "num_codes": 99}
    with pytest.raises(GenerationError, match=r"another version than the transformer; given 99 codes"):
        ask_changed("codes", tokenizer={**card["tokenizer"], "model": {**tokenizer, "quantiser": quantiser}})
    with pytest.raises(GenerationError, match=r"another version than the transformer"):
        ask_changed("grid", grid_shape=[24, 24, 24])
    with pytest.raises(GenerationError, match="not those of its config"):
        ask_changed("width", tokenizer={**card["tokenizer"], "model": {**tokenizer, "channels": 8}})
    with pytest.raises(GenerationError, match="another_model"):
        ask_changed("other", model_name="another_model")
    with pytest.raises(GenerationError, match="format 9"):
        ask_changed("format", format=9)
    with pytest.raises(ProfileError, match="would not give the same result"):
        ask_changed("profile", profile={**card["profile"], "sha256": "0" * 64})


def test_the_command_line_tells_what_is_wrong_in_one_line(
    trained: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(trained / "run"), str(scan), "--ages", "60", "61", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 1
    assert "--age-years" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="sampling is none"):
        ask(trained, scan, tmp_path, top_p=2.0)
