"""The model card: what an exported model is, how well it does, what it was made for, and how to use it."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from neuroray.platform.evaluate.metrics import REGRESSION_METRICS, metric_table


def render_model_card(config: dict[str, Any], report: dict[str, Any] | None, *, licence: str) -> str:
    """The card as Markdown; the same inputs give the same text.

    Args:
        config: `config.json` of the model folder.
        report: `report.json` of its evaluation; without one the card says that it has not been judged.
        licence: Of the weights.
    """
    environment = Environment(
        loader=PackageLoader("neuroray.platform.evaluate", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(_choose_template(config))
    return template.render(
        config=config,
        training=config["training"],
        slices=config["model"].get("slices", {}),
        encoder=config["model"].get("encoder", {}),
        report=report,
        rows=_metric_rows(report) if report else [],
        licence=licence,
        version=config["weights"]["sha256"][:12],
    )


def _choose_template(config: dict[str, Any]) -> str:
    """Brains at other ages, windows of runs, a measure told from slices, or classes of slices."""
    if config["model_name"] == "neuroar":
        return "ageing_card.md.j2"
    if "windows" in config:
        return "window_card.md.j2"
    return "measure_card.md.j2" if "targets" in config else "model_card.md.j2"


def _metric_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    if "whole" in report:
        return _pair_rows(report)
    table = metric_table(len(report["classes"])) if report["classes"] else REGRESSION_METRICS
    rows = []
    for name, found in report["metrics"].items():
        if found["value"] is None:
            rows.append((table[name].label, "not defined", ""))
        else:
            interval = "" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}"
            rows.append((table[name].label, f"{found['value']:.2f}", interval))
    return rows


def _pair_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of brains at other ages: the rows of the table, in the brain."""
    rows = []
    for row, label in report["rows"].items():
        psnr, ssim = (report["whole"]["metrics"][row][name] for name in ("psnr_brain", "ssim_brain"))
        interval = f"{psnr['low']:.2f} to {psnr['high']:.2f} dB"
        told = f"{psnr['value']:.2f} dB" + ("" if ssim["value"] is None else f", SSIM {ssim['value']:.3f}")
        rows.append((label, told, interval))
    return rows
