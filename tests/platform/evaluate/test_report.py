import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from neuroray.platform.evaluate.evidence import Evaluation, Fold, Judged, draw_for, measure, profile_attention, stratify
from neuroray.platform.evaluate.figures import draw_roc, roc_band
from neuroray.platform.evaluate.findings import gather_warnings, tell_headline
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import metric_table
from neuroray.platform.evaluate.report import Example, describe_evaluation, render_page, write_report
from neuroray.platform.evaluate.style import to_svg

PNG = b"\x89PNG\r\n\x1a\n"


def make_evaluation(*, classes=("control", "patient"), num_people=30, signal=1.5, num_folds=1) -> Evaluation:
    rng = np.random.default_rng(0)
    position = np.linspace(-40, 40, 21)
    judged = []
    for number in range(num_people):
        label = number % len(classes)
        logits = rng.normal(size=len(classes))
        logits[label] += signal
        probabilities = np.exp(logits) / np.exp(logits).sum()
        weights = rng.dirichlet(np.ones(21))
        judged.append(
            Judged(
                fold=number % num_folds,
                scan_id=f"secret-scan-{number}",
                subject=f"secret-person-{number}",
                label=label,
                probabilities=tuple(probabilities),
                age_years=20.0 + number,
                sex="FM"[number // 2 % 2],
                site=f"site<{number // 3 % 2}>",
                slice_weights=tuple(weights),
                position_mm=tuple(position),
            )
        )
    rows = tuple(judged)
    resamples = draw_for(rows, seed=0, num_resamples=200)
    metrics = measure(rows, resamples)
    counts = {side: dict.fromkeys(classes, 5) for side in ("train", "val", "test")}
    curves = {"train_loss": [(0, 1.0), (1, 0.5)], "val_loss": [(0, 1.1), (1, 0.9)], "val_score": [(0, 0.6), (1, 0.7)]}
    curves["kept"] = [(0, 0.6)]
    folds = tuple(
        Fold(
            index=index,
            counts=counts,
            num_subjects=dict.fromkeys(counts, 10),
            curves=curves,
            metrics={name: found.value for name, found in metrics.items()},
            facts={"weights_sha256": "ab" * 32, "profile": "native", "profile_sha256": "cd" * 32},
        )
        for index in range(num_folds)
    )
    evaluation = Evaluation(
        model_name="dinoatten3d",
        classes=classes,
        target="diagnosis",
        modality="T1w",
        judged=rows,
        folds=folds,
        metrics=metrics,
        strata=stratify(rows, len(classes), metric="auc", seed=0, num_resamples=50),
        attention=profile_attention(rows, "axial"),
        resamples=resamples,
        seed=0,
        provenance={
            "store": "s3://bucket/store",
            "catalogue_version": 3,
            "run_name": "run",
            "made_at": "2026-11-21",
            "versions": {"neuroray": "0.1"},
            "commands": ["neuroray evaluate run"],
        },
    )
    return dataclasses.replace(evaluation, warnings=gather_warnings(evaluation, shuffled=False))


class _Tags(HTMLParser):
    """Every tag with its attributes, and whether they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def page(evaluation):
    return render_page(evaluation, example=Example(png=PNG, title="An <example>", caption="of one scan"))


def test_the_page_needs_nothing_but_itself(page):
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    addresses = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert addresses
    assert all(str(value).startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.found}
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_no_name_of_a_person_is_on_the_page_or_in_the_report(evaluation, page):
    assert "secret" not in page
    assert "secret" not in json.dumps(describe_evaluation(evaluation))


def test_text_from_the_data_is_escaped(page):
    assert "An &lt;example&gt;" in page
    assert "site<0>" not in page


def test_every_metric_stands_in_the_table_with_its_interval(evaluation, page):
    for name, metric in metric_table(2).items():
        found = evaluation.metrics[name]
        assert metric.label in page
        assert f"{found.low:.2f} to {found.high:.2f}" in page


def test_the_same_evaluation_gives_the_same_page(evaluation):
    assert render_page(evaluation) == render_page(evaluation)


def test_report_json_is_strict_and_complete(evaluation, tmp_path):
    paths = write_report(evaluation, tmp_path / "out")
    report = json.loads(paths["report.json"].read_text(), parse_constant=pytest.fail)
    assert set(report["metrics"]) == set(metric_table(2))
    assert report["metrics"]["auc"]["interval_against_chance"] == "above"
    assert report["interval"] | {"kind": ""} == {"level": 0.95, "kind": "", "num_resamples": 200, "seed": 0}
    assert np.sum(report["confusion"]["counts"]) == 30
    assert report["positive_class"] == "patient"
    assert {row["variable"] for row in report["strata"]} == {"Sex", "Age", "Site"}


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ("NL", "MCI", "AD"), "num_people": 33},
        {"num_folds": 3},
        {"signal": 30.0},
        {"num_people": 4},
        {"num_people": 400},
    ],
    ids=["three classes", "three folds", "perfect", "four people", "many people"],
)
def test_a_page_is_made_for(changes):
    tags = _Tags()
    tags.feed(render_page(make_evaluation(**changes)))
    assert tags.open == []


def test_a_page_is_made_for_a_model_without_slices_or_log():
    evaluation = make_evaluation()
    folds = tuple(dataclasses.replace(fold, curves={}) for fold in evaluation.folds)
    page = render_page(dataclasses.replace(evaluation, attention=None, folds=folds, strata=()))
    assert "Where it looks" not in page
    assert "How it learned" not in page


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [(0.6, 0.9, "It tells patient from control"), (0.4, 0.6, "It does not tell"), (0.1, 0.3, "It ranks")],
)
def test_the_headline_follows_the_interval(evaluation, low, high, begins):
    auc = Estimate(value=(low + high) / 2, low=low, high=high)
    assert tell_headline(dataclasses.replace(evaluation, metrics={**evaluation.metrics, "auc": auc})).startswith(begins)


def test_few_people_and_perfect_rates_are_warned_of():
    warnings = " ".join(make_evaluation(num_people=20, signal=30.0).warnings)
    assert "Only 10 scans of class “patient”" in warnings
    assert "Clopper" in warnings
    assert make_evaluation(num_people=60).warnings == ()


def test_svg_is_well_formed_and_its_ids_carry_the_name(evaluation):
    figure = draw_roc(evaluation.labels, evaluation.probabilities, evaluation.classes, evaluation.resamples)
    svg = to_svg(figure, "roc")
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(str(name).startswith("roc-") for name in ids)
    targets = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert targets
    assert set(targets) <= set(ids)


def test_svg_takes_its_colours_from_the_page(evaluation):
    figure = draw_roc(evaluation.labels, evaluation.probabilities, evaluation.classes, evaluation.resamples)
    svg = to_svg(figure, "roc")
    assert "var(--series-0)" in svg
    # What is left over is what matplotlib draws that no figure of ours named.
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}


def test_the_band_of_unresampled_people_is_the_curve_itself():
    positive = np.array([True, True, False, True, False, False])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    low, high = roc_band(positive, scores, np.ones((5, 6)))
    assert np.array_equal(low, high)
    # Two of three are found before the first false alarm, all before the second.
    assert low[0] == pytest.approx(2 / 3)
    assert low[33] == pytest.approx(2 / 3)
    assert low[34] == 1.0
