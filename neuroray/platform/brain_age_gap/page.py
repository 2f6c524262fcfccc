"""What stands on the page of a study of the gap: raw numbers first, figures with titles that tell, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.brain_age_gap import figures, findings
from neuroray.platform.brain_age_gap.answers import ages_of, first_visits, predictions_of
from neuroray.platform.brain_age_gap.correction import GAP_KINDS, GAP_LABELS
from neuroray.platform.brain_age_gap.effects import tell_effect, tell_p
from neuroray.platform.brain_age_gap.evidence import CaseStudy, GapStudy
from neuroray.platform.brain_age_gap.recovery import Recovery, tabulate_recovery, tell_recovery
from neuroray.platform.brain_age_gap.slopes import person_slopes
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.page import Numbering

_METRICS = {"mae": "Mean absolute error", "rmse": "Root mean squared error", "bias": "Mean error"}
_SHARES = {"pearson_r": "Pearson correlation", "r2": "Variance explained"}


def describe_gap_page(
    study: GapStudy, provenance: Mapping[str, Any], recovery: Recovery | None = None
) -> dict[str, Any]:
    """All values of the template."""
    numbering = Numbering()
    sections = [_raw(study, numbering), _corrected(study, numbering)]
    sections += [_groups(study, numbering)] if study.cases else []
    sections += [_time(study, numbering)] if study.slopes else []
    sections += [_truth(recovery)] if recovery else []
    return {
        "kicker": f"Brain age gap of {provenance['run_name']}",
        "headline": findings.tell_headline(study),
        "lead": findings.tell_raw(study),
        "facts": [
            ("People", study.num_people),
            ("Scans", len(study.answers)),
            ("Controls", ", ".join(study.controls) or "none named"),
            ("Made", provenance["made_at"]),
        ],
        "key": _key(study),
        "warnings": study.warnings,
        "sections": sections,
        "methods": _methods(study),
        "provenance": [
            ("Store", provenance["store"]),
            ("Catalogue version", provenance["catalogue_version"]),
            ("Predictions", provenance["predictions"]),
            *(("Command", command) for command in provenance.get("commands", ())),
            ("Versions", ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())),
        ],
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


def _key(study: GapStudy) -> list[dict[str, str]]:
    mae, r, r2 = study.raw["mae"], study.raw["pearson_r"], study.raw["r2"]
    items = [
        ("Error, uncorrected (years)", f"{mae.value:.2f}", f"{mae.low:.2f} to {mae.high:.2f}"),
        ("Saying the mean age", f"{study.guess_mae:.2f}", "years off, on the same people"),
        ("Correlation, uncorrected", _tell(r.value), f"{_tell(r.low)} to {_tell(r.high)}"),
        ("Variance explained, uncorrected", _tell(r2.value), f"{_tell(r2.low)} to {_tell(r2.high)}"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in items]


def _tell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "n/a"


def _tell_estimate(found: Estimate) -> str:
    return f"{_tell(found.value)} ({_tell(found.low)} to {_tell(found.high)})"


def name_groups(study: GapStudy) -> list[str]:
    """Of each scan: `controls`, the group, or `group unknown`; all the same where no controls were named."""
    if not study.controls:
        return ["everybody"] * len(study.answers)
    return ["controls" if row.group in study.controls else row.group or "group unknown" for row in study.answers]


def _raw(study: GapStudy, numbering: Numbering) -> dict[str, Any]:
    lines = [(each.slope, each.intercept_years, *each.ages_years) for each in study.corrections.values()]
    figure = figures.draw_raw(ages_of(study.answers), predictions_of(study.answers), name_groups(study), lines)
    slopes = [each.slope for each in study.corrections.values()]
    moved = f"{min(slopes):.2f}" if len(slopes) == 1 else f"{min(slopes):.2f} to {max(slopes):.2f}"
    caption = (
        "One dot is one scan; on the dashed line the prediction is the age. Solid: the line of controls who are not "
        "judged, one a fold, on which the corrections below rest."
    )
    head = ["", "Everybody judged", *(["Controls alone"] if study.raw_of_controls else [])]
    rows = [
        [label, _tell_estimate(study.raw[name])]
        + ([_tell_estimate(study.raw_of_controls[name])] if study.raw_of_controls else [])
        for name, label in (_METRICS | _SHARES | {"guess_mae": "Error of saying the mean age"}).items()
    ]
    return {
        "title": "Before any correction",
        "text": "These numbers judge the model. Nothing below does.",
        "figures": [numbering.plot(figure, "raw", f"A year of age moves the prediction by {moved} years", caption)],
        "tables": [{"title": "The predictions as they are, years", "head": head, "rows": rows, "note": ""}],
    }


def _corrected(study: GapStudy, numbering: Numbering) -> dict[str, Any]:
    panels = {GAP_LABELS[kind]: study.gaps(kind) for kind in GAP_KINDS if np.isfinite(study.gaps(kind)).any()}
    figure = figures.draw_gaps_by_age(ages_of(study.answers), panels, name_groups(study))
    tables = []
    if study.after:
        rows = [
            [GAP_LABELS[kind], *(_tell_estimate(found[name]) for name in ("mae", "pearson_r", "r2"))]
            for kind, found in study.after.items()
        ]
        note = (
            "These do not judge the model. Beheshti's correction adds the true age to the prediction, so that a model "
            "which sees nothing at all reaches a correlation near 1."
        )
        title = "After correction, for completeness only, years"
        tables.append({"title": title, "head": ["", "Error", "Correlation", "R²"], "rows": rows, "note": note})
    rows = [
        [
            f"Fold {fold}",
            f"{each.num_people} ({each.num_scans} scans)",
            f"{each.ages_years[0]:.0f} to {each.ages_years[1]:.0f}",
            f"{each.slope:.3f}",
            f"{each.intercept_years:.2f}",
            f"{each.residual_years:.2f}",
        ]
        for fold, each in study.corrections.items()
    ]
    head = ["", "Controls", "Ages", "Slope", "Intercept", "SD around the line"]
    tables.append({"title": "The corrections", "head": head, "rows": rows, "note": _tell_fit(study)})
    return {
        "title": "The gap, and age taken out of it",
        "text": "A raw gap falls with age in every regression. Where the lines below are level, age is gone.",
        "figures": [
            numbering.plot(
                figure,
                "gaps",
                "The gap against age, raw and corrected",
                "One dot is one scan; lines are least squares within a group.",
                wide=True,
            )
        ],
        "tables": tables,
    }


def _tell_fit(study: GapStudy) -> str:
    where = {
        "other_folds": "held-out controls of the other folds, each predicted by a model that had not seen them",
        "validation": "controls of the validation side, on whom the model's weights were selected",
        "table": "the controls of another table of predictions",
    }[study.fit_on]
    return f"Fitted on {where}. Nobody who is judged, and no relative, had a part."


def _groups(study: GapStudy, numbering: Numbering) -> dict[str, Any]:
    gaps = study.gaps(study.shown)
    place = {(row.fold, row.scan_id): index for index, row in enumerate(study.answers)}
    by_group: dict[str, list[float]] = {"controls": []}
    names = name_groups(study)
    for row in first_visits(study.answers):
        index = place[row.fold, row.scan_id]
        by_group.setdefault(names[index], []).append(float(gaps[index]))
    shown = numbering.plot(
        figures.draw_groups({name: np.array(values) for name, values in by_group.items() if values}),
        "groups",
        findings.tell_headline(study),
        f"One dot is one person at the first visit; the gap {GAP_LABELS[study.shown]}. Bars: mean and 95 % interval.",
    )
    drawn = [shown]
    odds = [
        (f"{case.case}, {GAP_LABELS[case.kind]}", case.association.per_year)
        for case in study.cases
        if np.isfinite(case.association.per_year.value)
    ]
    if odds:
        held = ", ".join(sorted({name for case in study.cases for name in case.association.covariates}))
        drawn.append(
            numbering.plot(
                figures.draw_effects(odds, "Odds ratio of the diagnosis per year of gap", is_ratio=True),
                "odds",
                "The odds of the diagnosis by a year of gap",
                f"Logistic regression; held: {held}. Lines are 95 % Wald intervals; at 1 the gap tells nothing.",
                wide=True,
            )
        )
    return {
        "title": "Groups",
        "text": "All tests are two-sided, on one scan a person: the first.",
        "figures": drawn,
        "tables": [_comparison_table(study.cases), _odds_table(study.cases), _high_table(study.cases)],
    }


def _comparison_table(cases: Sequence[CaseStudy]) -> dict[str, Any]:
    rows = []
    for case in cases:
        found = case.comparison
        cells = ["too few", "n/a", "n/a", "n/a"]
        if found is not None:
            cells = [
                f"{found.num_cases} and {found.num_controls}",
                tell_effect(found.difference_years),
                f"p {tell_p(found.mann_whitney_p)}",
                tell_effect(found.hedges_g),
            ]
        rows.append([f"{case.case}, {GAP_LABELS[case.kind]}", *cells])
    return {
        "title": "The gap of cases less that of controls, years",
        "head": ["", "People", "Difference (Welch)", "Mann-Whitney", "Hedges' g"],
        "rows": rows,
        "note": "The raw difference is fair only between groups of one age.",
    }


def _odds_table(cases: Sequence[CaseStudy]) -> dict[str, Any]:
    rows: list[list[str]] = []
    notes: dict[str, list[str]] = {}
    for case in cases:
        found = case.association
        name = f"{case.case}, {GAP_LABELS[case.kind]}"
        who = f"{found.num_cases} and {found.num_controls}"
        rows.append([name, who, ", ".join(found.covariates), tell_effect(found.per_sd), tell_effect(found.per_year)])
        for note in found.notes:
            notes.setdefault(note, []).append(name)
    return {
        "title": "Odds ratios of the diagnosis",
        "head": ["", "People", "Held", "Per SD of the gap", "Per year of gap"],
        "rows": rows,
        "note": " ".join(
            note if len(names) == len(rows) else f"{', '.join(names)}: {note}" for note, names in notes.items()
        ),
    }


def _high_table(cases: Sequence[CaseStudy]) -> dict[str, Any]:
    rows = []
    for case in cases:
        for found in case.tables:
            (a, b), (c, d) = found.counts
            rows.append(
                [
                    f"{case.case}, {GAP_LABELS[case.kind]}: above {case.threshold_years:.1f} against {found.name}",
                    f"{a}, {b} / {c}, {d}",
                    tell_effect(found.odds_ratio) + (" *" if found.is_adjusted else ""),
                    tell_effect(found.risk_ratio) + (" *" if found.is_adjusted else ""),
                    f"p {tell_p(found.chi2_p)}" if np.isfinite(found.chi2_p) else "n/a",
                ]
            )
    return {
        "title": "High gaps: more than one standard deviation of controls who are not judged",
        "head": ["", "Cases, controls / of the others", "Odds ratio (Fisher's p)", "Risk ratio", "Chi²"],
        "rows": rows,
        "note": "* A cell is empty, and a half was added to each (Haldane, Anscombe); the p values are of the counts.",
    }


def _time(study: GapStudy, numbering: Numbering) -> dict[str, Any]:
    gaps, names = study.gaps(study.shown), name_groups(study)
    ages = ages_of(study.answers)
    courses: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for _, indices in person_slopes(study.answers, gaps).values():
        order = sorted(indices, key=lambda index: ages[index])
        courses.setdefault(names[indices[0]], []).append((ages[order], gaps[order]))
    rows, notes = [], []
    for kind, slopes in study.slopes.items():
        for each in slopes.groups:
            who = f"{each.num_people} ({each.num_scans} scans)"
            rows.append([f"{each.group}, {GAP_LABELS[kind]}", who, tell_effect(each.mean), tell_effect(each.mixed)])
        if slopes.difference is not None:
            told = [tell_effect(effect) for effect in slopes.difference]
            rows.append([f"cases less controls, {GAP_LABELS[kind]}", "", *told])
        notes += slopes.notes
    return {
        "title": "Over the years",
        "text": "",
        "figures": [
            numbering.plot(
                figures.draw_courses(dict(sorted(courses.items()))),
                "courses",
                "The gap of those who came more than once",
                f"One line is one person; the gap {GAP_LABELS[study.shown]}.",
                wide=True,
            )
        ],
        "tables": [
            {
                "title": "Change of the gap, years per year",
                "head": ["", "People", "Mean of people's slopes (bootstrap)", "Mixed model (Wald)"],
                "rows": rows,
                "note": " ".join(dict.fromkeys(notes)),
            }
        ],
    }


def _truth(recovery: Recovery) -> dict[str, Any]:
    return {
        "title": "Against the planted truth",
        "text": tell_recovery(recovery),
        "figures": [],
        "tables": [tabulate_recovery(recovery)],
    }


def _methods(study: GapStudy) -> list[str]:
    return [
        "Corrections: a line of predicted on true age, by least squares. Beheshti 2019 (the same as de Lange 2020) "
        "takes the line's distance from the true age off the prediction; Cole 2018 inverts the line. The first makes "
        "gaps smaller by the slope than the second, which is why sizes in years are those of the second and why "
        "standard deviations, ranks and odds ratios per SD are those of either.",
        f"Intervals of errors and correlations are percentiles of {study.num_resamples} bootstrap resamples of "
        f"families or people (seed {study.seed}). The corrections are held fixed in them.",
        "Odds ratios: logistic regression of the diagnosis on gap, age, sex and site; sites of fewer than ten "
        "people pooled; where that has no solution, without site. Whether groups are separated is found by a linear "
        "programme.",
        "Slopes: least squares a person, averaged, bootstrap over families or people; beside it a mixed model with an "
        "intercept for each person, fitted by restricted maximum likelihood.",
    ]
