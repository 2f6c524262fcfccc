"""What stands on the quality page: the summary, who to look at first, pictures, a table to sort, every definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroray.platform.evaluate.style import to_svg
from neuroray.platform.evaluate.templates import open_template
from neuroray.platform.quality.cohort import Cohort, Examined, field_of_view_mm
from neuroray.platform.quality.figures import draw_course, draw_spreads
from neuroray.platform.quality.measures import MEASURES, RUN_ONLY, Measure, tell
from neuroray.platform.quality.outliers import FEWEST, THRESHOLD
from neuroray.platform.quality.pictures import draw_carpet, draw_tile, draw_tiles, picture_address

# A scan whose own window is so far from its cohort's would be all black or all white.
_MOST_APART = 2.5
_COLUMNS = ("snr", "snrd", "fber", "efc", "fwhm_avg", "summary_fg_median")
_RUN_COLUMNS = ("fd_mean", "dvars_std", "tsnr", "snr", "efc")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """What the page says of where its scans come from.

    Attributes:
        store: The address.
        catalogue_version: Of its catalogue.
        made_at: UTC.
        neuroray: The version.
        command: That made it.
        failed: Scans that could not be examined, each with the reason.
        max_pictures: How many scans get a picture, those to look at first before the others.
    """

    store: str
    catalogue_version: int
    made_at: str
    neuroray: str
    command: str
    failed: Sequence[Mapping[str, str]]
    max_pictures: int


def render_page(cohort: Cohort, facts: PageFacts) -> str:
    """The page as text: one file, no address outside itself."""
    template = open_template("neuroray.platform.quality", "qc.html.j2")
    return template.render(page=_describe(cohort, facts))


def _describe(cohort: Cohort, facts: PageFacts) -> dict[str, Any]:
    shown = [_card(scan, cohort) for scan in cohort.scans[: facts.max_pictures]]
    apart = [card for card, scan in zip(shown, cohort.scans, strict=False) if scan.stands_apart]
    rest = [card for card, scan in zip(shown, cohort.scans, strict=False) if not scan.stands_apart]
    return {
        "kicker": "Quality of a cohort",
        "headline": tell_headline(cohort, facts),
        "lead": _lead(cohort),
        "facts": [
            ("Store", facts.store.rstrip("/").rpartition("/")[2]),
            ("Catalogue version", facts.catalogue_version),
            ("Made", facts.made_at),
        ],
        "key": _key_numbers(cohort, facts),
        "warnings": _warnings(cohort, facts),
        "failed": facts.failed,
        "apart": apart,
        "rest": sorted(rest, key=lambda card: card["id"]),
        "spreads": _spreads(cohort),
        "tables": _tables(cohort),
        "definitions": _definitions(cohort),
        "methods": _METHODS,
        "provenance": [("Store", facts.store), ("Command", facts.command)],
        "footer": f"Made by neuroray {facts.neuroray} on {facts.made_at}. No diagnostic device: for research use. "
        "The page names scans and shows slices of heads: keep it where the data may be.",
    }


def tell_headline(cohort: Cohort, facts: PageFacts) -> str:
    """The finding in one line."""
    apart = sum(scan.stands_apart for scan in cohort.scans)
    failed = f", {len(facts.failed)} could not be read" if facts.failed else ""
    if not cohort.scans:
        return f"No scans{failed}"
    if not apart:
        return f"None of {len(cohort.scans)} scans stands apart{failed}"
    return f"{apart} of {len(cohort.scans)} scans {'stands' if apart == 1 else 'stand'} apart{failed}"


def _lead(cohort: Cohort) -> str:
    kinds = Counter(scan.record.modality for scan in cohort.scans)
    what = " and ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    people = len({scan.record.subject for scan in cohort.scans})
    return (
        f"{what} of {people} {'person' if people == 1 else 'people'}, each held against the others of its kind. To "
        "stand apart is a reason to look, not a verdict."
    )


def _key_numbers(cohort: Cohort, facts: PageFacts) -> list[dict[str, str]]:
    kinds = Counter(finding.kind for scan in cohort.scans for finding in scan.findings)
    with_fault = sum(any(finding.kind == "fault" for finding in scan.findings) for scan in cohort.scans)
    with_outlier = sum(any(finding.kind == "outlier" for finding in scan.findings) for scan in cohort.scans)
    with_odd = sum(any(finding.kind == "odd" for finding in scan.findings) for scan in cohort.scans)
    flags = f"{_plural(kinds['flag'], 'flag')} from ingest"
    flags += f", {len(facts.failed)} not readable" if facts.failed else ""
    return [
        {"label": "Scans", "value": str(len(cohort.scans)), "note": flags},
        {"label": "With a fault", "value": str(with_fault), "note": "frozen, cut off, copied, not finite"},
        {"label": "Far from the others", "value": str(with_outlier), "note": f"robust z beyond {THRESHOLD}"},
        {"label": "Of another make", "value": str(with_odd), "note": "voxel size, field of view, orientation, timing"},
    ]


def _plural(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _warnings(cohort: Cohort, facts: PageFacts) -> list[str]:
    texts = [
        f"{name}: fewer than {FEWEST} scans, too few for any to stand apart in a measure."
        for name in cohort.small_groups
    ]
    notices = Counter(notice for scan in cohort.scans for notice in scan.quality.notices)
    texts += [f"{_plural(count, 'scan')}: {notice}." for notice, count in notices.most_common()]
    hidden = len(cohort.scans) - facts.max_pictures
    if hidden > 0:
        texts.append(f"{hidden} scans stand in the table without a picture (--pictures, or --scans for some of them).")
    return texts


def _card(scan: Examined, cohort: Cohort) -> dict[str, Any]:
    """One scan as the page shows it."""
    quality, record = scan.quality, scan.record
    shown, note = _choose_window(quality.window, cohort.windows[scan.group])
    picture = ""
    if quality.tiles:
        picture = picture_address(draw_tiles(quality.tiles, quality.window, shown, all_of_them=scan.stands_apart))
    card = {
        "id": record.scan_id,
        "group": scan.group,
        "about": _tell_grid(scan),
        "findings": [{"kind": finding.kind, "text": finding.text} for finding in scan.findings],
        "picture": picture,
        "picture_note": note or ("" if picture else "; ".join(quality.notices) or "no head was found in it"),
        "course": None,
    }
    if quality.course is not None:
        snr = "" if quality.snr_tile is None else picture_address(draw_tile(quality.snr_tile))
        card["course"] = {
            "svg": to_svg(draw_course(quality.course, record.repetition_time_s), f"course-{record.scan_id}"),
            "carpet": picture_address(draw_carpet(quality.course.carpet)),
            "snr": snr,
            "snr_top": f"{quality.snr_tile_top:.0f}",
            "numbers": [(MEASURES[name].label, tell(name, quality.measures.get(name))) for name in _RUN_COLUMNS],
        }
    return card


def _choose_window(own: tuple[float, float], usual: tuple[float, float]) -> tuple[tuple[float, float], str]:
    """The cohort's window, or the scan's own where that would show nothing; and what to say of it."""
    ratio = (own[1] - own[0]) / max(usual[1] - usual[0], 1e-12)
    if 1 / _MOST_APART <= ratio <= _MOST_APART:
        return usual, ""
    way = f"{ratio:.1f} times as bright" if ratio > 1 else f"{1 / ratio:.1f} times as dark"
    return own, f"In a window of its own: {way} as the cohort's."


def _tell_grid(scan: Examined) -> str:
    record = scan.record
    spacing = " x ".join(f"{size:.3g}" for size in record.zooms_mm[-3:])
    field = " x ".join(f"{length:.0f}" for length in field_of_view_mm(record))
    frames = ""
    if len(record.shape) == 4:
        time = "" if record.repetition_time_s is None else f" of {record.repetition_time_s:g} s"
        frames = f" · {record.shape[0]} frames{time}"
    return f"{spacing} mm · {field} mm field · {scan.quality.orientation}{frames}"


def _spreads(cohort: Cohort) -> list[dict[str, str]]:
    figures = []
    for number, group in enumerate(dict.fromkeys(scan.group for scan in cohort.scans)):
        scans = [scan for scan in cohort.scans if scan.group == group]
        scores = {
            name: [(scan.record.scan_id, z) for scan in scans if (z := scan.z.get(name)) is not None]
            for name in MEASURES
        }
        scores = {name: found for name, found in scores.items() if found}
        if scores:
            figures.append({"title": group, "svg": to_svg(draw_spreads(scores), f"spreads-{number}")})
    return figures


def _tables(cohort: Cohort) -> list[dict[str, Any]]:
    """One table for volumes and one for runs: they share few columns."""
    tables = []
    for title, is_run in (("Volumes", False), ("Runs", True)):
        scans = [scan for scan in cohort.scans if (len(scan.record.shape) == 4) is is_run]
        names = [
            name
            for name in (_RUN_COLUMNS if is_run else _COLUMNS)
            if any(scan.quality.measures.get(name) is not None for scan in scans)
        ]
        if scans:
            heads = [_head(MEASURES[name]) for name in names]
            tables.append({"title": title, "heads": heads, "rows": [_row(scan, names) for scan in scans]})
    return tables


def _head(measure: Measure) -> dict[str, str]:
    arrow = {"higher": "↑", "lower": "↓", None: ""}[measure.better]
    return {"label": measure.label, "arrow": arrow, "definition": measure.definition}


def _row(scan: Examined, names: Sequence[str]) -> dict[str, Any]:
    cells = []
    for name in names:
        value, z = scan.quality.measures.get(name), scan.z.get(name)
        is_far = z is not None and abs(z) > THRESHOLD
        order = "" if value is None else f"{value:.9g}"
        told = "" if z is None else f"robust z {z:+.1f}"
        cells.append({"text": tell(name, value), "order": order, "is_far": is_far, "z": told})
    findings = [finding for finding in scan.findings if finding.kind != "flag"]
    return {
        "id": scan.record.scan_id,
        "modality": scan.record.modality,
        "num_findings": len(findings),
        "findings": "; ".join(finding.text for finding in scan.findings),
        "spacing": " x ".join(f"{size:.3g}" for size in scan.record.zooms_mm[-3:]),
        "field": " x ".join(f"{length:.0f}" for length in field_of_view_mm(scan.record)),
        "orientation": scan.quality.orientation,
        "cells": cells,
    }


def _definitions(cohort: Cohort) -> list[dict[str, str]]:
    has_runs = any(len(scan.record.shape) == 4 for scan in cohort.scans)
    return [
        {"label": measure.label, "name": name, "definition": measure.definition}
        for name, measure in MEASURES.items()
        if has_runs or name not in RUN_ONLY
    ]


_METHODS = (
    f"A scan stands apart in a measure when its robust z, 0.6745 (value \N{MINUS SIGN} median) / MAD over the scans of "
    f"the same modality and region, lies beyond {THRESHOLD} (Iglewicz and Hoaglin 1993). Where more than half of the "
    "values are equal, 0.7979 (value \N{MINUS SIGN} median) / mean absolute deviation is taken.",
    f"Among fewer than {FEWEST} scans none stands apart. In small groups median and MAD are themselves uncertain: "
    "of normal values 5 % lie beyond the threshold by chance in a group of 5, 1.6 % of 10, 0.2 % of 55, in each "
    "measure.",
    "Voxel size, field of view (to the next 5 mm), orientation of the file, repetition time and number of frames are "
    "told where more than half have another.",
    "Pictures share one window within a group: from 0 to the median of the scans' 99.5th percentiles inside. The "
    "person's left is on the left. Slices lie at fixed depths under the top of the head, so that they compare.",
    "Faces: what lies in front of 58 % of the head's length and below a plane that rises from 80 mm under the top of "
    "the head there to 34 mm at its front is never drawn, no slice is the midline, and nothing is drawn of a scan "
    "whose header does not say how it lies.",
    "Head and air are found by half of Otsu's threshold, the largest part, holes filled; air begins 8 mm away.",
)
