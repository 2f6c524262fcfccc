"""predictions.html: what was answered for each file, to read and to hand on, with the maps that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import neuroray
from neuroray.platform.evaluate.style import png_address
from neuroray.platform.evaluate.templates import open_template

PAGE: Final = "predictions.html"
_MOST_FILES: Final = 500  # the JSON and the table hold all


def render_prediction_page(
    card: dict[str, Any], rows: Sequence[dict[str, Any]], *, tell: Callable[[dict[str, Any]], list[str]]
) -> str:
    """The page: one file that needs nothing but itself.

    Args:
        card: What is told of the model, as JSON takes it.
        rows: The answers of `predictions.json`, in order.
        tell: An answered row in sentences: its targets first, then gap and map, where there are any.
    """
    refused = sum(row["refusal"] is not None for row in rows)
    page = {
        "headline": _tell_headline(len(rows), refused),
        "card": card,
        "targets": ", ".join(_name_target(target) for target in card["targets"]) or "the same brain at other ages",
        "answers": [_describe(row, tell) for row in rows[:_MOST_FILES]],
        "num_left_out": max(0, len(rows) - _MOST_FILES),
        "footer": f"Made by neuroray {neuroray.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        "Answers of a research model: no diagnosis rests on them.",
    }
    return open_template("neuroray.jobs", "predictions.html.j2").render(page=page)


def _describe(row: dict[str, Any], tell: Callable[[dict[str, Any]], list[str]]) -> dict[str, Any]:
    name = Path(row["scan"]).name
    if row["refusal"] is not None:
        fault = row["refusal"]
        return {"file": name, "refusal": fault["text"], "answer": None, "facts": [], "notes": [], "picture": None}
    answer, *facts = [line.strip() for line in tell(row)]
    files = row.get("explanation", {}).get("files", {})
    if files:  # the page lies beside the folder of maps
        facts = [fact.replace(files["map"], f"maps/{Path(files['map']).name}") for fact in facts]
    drawn = files.get("picture") or row.get("strip")
    return {
        "file": name,
        "refusal": None,
        "answer": answer,
        "facts": [*facts, f"prepared by the profile {row['profile']} ({row['profile_sha256'][:12]})"],
        "notes": row["warnings"],
        "picture": png_address(Path(drawn).read_bytes()) if drawn else None,
    }


def _name_target(target: dict[str, Any]) -> str:
    if target["kind"] == "number":
        return f"{target['name']} in {target['unit']}" if target["unit"] else target["name"]
    return f"{target['name']} ({', '.join(target['classes'])})"


def _tell_headline(num_files: int, num_refused: int) -> str:
    if not num_refused:
        return "The file is answered for" if num_files == 1 else f"All {num_files} files are answered for"
    if num_files == num_refused:
        return "The file was refused" if num_files == 1 else f"All {num_files} files were refused"
    were = "was" if num_refused == 1 else "were"
    return f"{num_files - num_refused} of {num_files} files are answered for, {num_refused} {were} refused"
