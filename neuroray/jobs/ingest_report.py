"""What an ingest leaves to read: `ingest_report.json`, and `ingest_report.html` with a picture of what was refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

import neuroray
from neuroray.jobs.ingest_steps import Outcome

REPORT: Final = "ingest_report.json"
PAGE: Final = "ingest_report.html"

_MOST_PICTURES: Final = 200  # a page of a few megabytes; the JSON lists all
_MOST_ROWS: Final = 2000


def write_ingest_report(answer: dict[str, Any], outcomes: Sequence[Outcome], out: Path) -> None:
    """Writes both files into an existing folder.

    Args:
        answer: The job's answer, as JSON takes it.
        outcomes: How it ended for each file.
        out: The folder.
    """
    (out / REPORT).write_text(json.dumps(answer, indent=2) + "\n")
    (out / PAGE).write_text(render_page(answer, outcomes))


def forget(out: Path, scan_ids: set[str], files: set[str]) -> bool:
    """Takes scans and refused files out of the reports in a folder; counts stay. True where there was any."""
    report = json.loads((out / REPORT).read_text())
    flagged = {name: flags for name, flags in report.get("flagged", {}).items() if name not in scan_ids}
    refused = [one for one in report.get("refused", []) if one["file"] not in files]
    if flagged == report.get("flagged", {}) and refused == report.get("refused", []):
        return False
    (out / REPORT).write_text(json.dumps({**report, "flagged": flagged, "refused": refused}, indent=2) + "\n")
    if (out / PAGE).is_file():
        page = (out / PAGE).read_text()
        for anchor in (*(_anchor("scan", name) for name in scan_ids), *(_anchor("file", name) for name in files)):
            page = re.sub(rf'<(article|tr) id="{anchor}">.*?</\1>', "", page, flags=re.DOTALL)
        (out / PAGE).write_text(page)
    return True


def render_page(answer: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page: one file that needs nothing but itself."""
    from neuroray.platform.evaluate.style import png_address

    refused = [outcome for outcome in outcomes if outcome.refusal]
    rows = [
        {
            "anchor": _anchor("file", outcome.file),
            "file": outcome.file,
            "reason": outcome.refusal,
            "picture": png_address(outcome.thumbnail) if outcome.thumbnail and index < _MOST_PICTURES else None,
        }
        for index, outcome in enumerate(refused[:_MOST_ROWS])
    ]
    page = {
        "headline": _tell_headline(answer, len(outcomes)),
        "answer": answer,
        "num_files": len(outcomes),
        "refused": rows,
        "num_left_out": len(refused) - len(rows),
        "flagged": [(_anchor("scan", name), name, flags) for name, flags in answer["flagged"].items()][:_MOST_ROWS],
        "footer": f"Made by neuroray {neuroray.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    }
    environment = Environment(
        loader=PackageLoader("neuroray.jobs", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("ingest_report.html.j2").render(page=page)


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _tell_headline(answer: dict[str, Any], num_files: int) -> str:
    num_refused = len(answer["refused"])
    if not num_files:
        return "Nothing was found to bring in"
    if not num_refused:
        return f"All {num_files} files are in the store" if num_files > 1 else "The file is in the store"
    were = "was" if num_refused == 1 else "were"
    return f"{num_files - num_refused} of {num_files} files are in the store, {num_refused} {were} refused"
