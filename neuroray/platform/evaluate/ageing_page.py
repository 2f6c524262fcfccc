"""What stands on the page of brains at other ages: what it says, its tables and figures in their order, its methods."""

from __future__ import annotations

from typing import Any

from neuroray.platform.baselines.latent_diffusion import DIFFUSION
from neuroray.platform.evaluate import ageing_findings as findings
from neuroray.platform.evaluate import ageing_page_figures as figures
from neuroray.platform.evaluate import ageing_page_tables as tables
from neuroray.platform.evaluate.ageing_evidence import CEILING, COPY, MODEL, AgeingEvaluation
from neuroray.platform.evaluate.ageing_page_tables import NOTHING, tell_ends, tell_value
from neuroray.platform.evaluate.ageing_sweep import NUM_AGES
from neuroray.platform.evaluate.image_quality import SSIM_STATED
from neuroray.platform.evaluate.labelled_regions import tell_labels
from neuroray.platform.evaluate.page import Numbering, describe_provenance
from neuroray.platform.evaluate.perceptual import tell_perceptual
from neuroray.platform.evaluate.templates import open_template


def render_ageing_page(evaluation: AgeingEvaluation) -> str:
    """The page as text."""
    template = open_template("neuroray.platform.evaluate", "ageing.html.j2")
    return template.render(page=describe_ageing_page(evaluation))


def describe_ageing_page(evaluation: AgeingEvaluation) -> dict[str, Any]:
    """All values of the template."""
    numbering, provenance = Numbering(), evaluation.provenance
    return {
        "kicker": f"Evaluation of {provenance.get('model_title', evaluation.model_name)}",
        "headline": findings.tell_ageing_headline(evaluation),
        "lead": _lead(evaluation),
        "facts": [
            ("Pairs", len(evaluation.judged)),
            ("People", evaluation.num_people),
            ("Told", "younger brains" if evaluation.backward else "older brains"),
            ("Run", provenance["run_name"]),
            ("Catalogue version", provenance["catalogue_version"]),
            ("Made", provenance["made_at"]),
        ],
        "key": _key_numbers(evaluation),
        "warnings": evaluation.warnings,
        "fewest_sure": findings.FEWEST_SURE,
        "images": tables.tabulate_images(evaluation),
        "gaps": figures.draw_gaps(evaluation, numbering),
        "pictures": [numbering.picture(one.png, one.title, one.caption) for one in evaluation.pictures],
        "regions": tables.tabulate_regions(evaluation),
        "region_text": f"Volumes in ml of the person's own space: {evaluation.region_method}.",
        "label_text": "" if evaluation.labels is None else f"{tell_labels(evaluation.labels)}.",
        "changes": figures.draw_changes(evaluation, numbering),
        "sweep": figures.draw_sweep(evaluation, numbering),
        "sweep_text": _tell_sweep(evaluation),
        "read": tables.tabulate_read(evaluation),
        "read_figures": figures.draw_read(evaluation, numbering),
        "downstream": tables.tabulate_downstream(evaluation),
        "learning": figures.draw_learning(evaluation, numbering),
        "sides": [
            {"fold": fold.index, **{side: (fold.num_subjects[side], fold.counts[side]["all"]) for side in fold.counts}}
            for fold in evaluation.folds
        ],
        "methods": _methods(evaluation),
        "provenance": describe_provenance(evaluation),
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


def _lead(evaluation: AgeingEvaluation) -> str:
    metrics = evaluation.whole.metrics
    copy, ceiling, made = (tell_value(metrics[row]["psnr_brain"]) for row in (COPY, CEILING, MODEL))
    gain = evaluation.whole.gains[MODEL]["psnr_brain"]
    return (
        f"Over {len(evaluation.judged)} pairs of visits of {evaluation.num_people} {evaluation.who} the model draws "
        f"the other visit with {made} dB in the brain. Copying the given scan reaches {copy} dB, and the true other "
        f"visit through the tokenizer, which no answer of tokens alone can pass by much, {ceiling} dB. Pair by pair "
        f"the model has {gain.value:+.2f} dB over the copy, with a 95 % interval of {gain.low:+.2f} to "
        f"{gain.high:+.2f}."
    )


def _key_numbers(evaluation: AgeingEvaluation) -> list[dict[str, str]]:
    metrics, gains = evaluation.whole.metrics, evaluation.whole.gains[MODEL]
    copy, ceiling = (tell_value(metrics[row]["psnr_brain"], 1) for row in (COPY, CEILING))
    change = evaluation.regions.get(evaluation.main_region, {}).get(MODEL)
    rising, l1 = evaluation.sweep.rising_share, metrics[MODEL]["l1_brain"]
    return [
        {
            "label": "PSNR in the brain (dB)",
            "value": tell_value(metrics[MODEL]["psnr_brain"], 1),
            "note": f"copy {copy} · ceiling {ceiling}",
        },
        {
            "label": "L1 in the brain",
            "value": tell_value(l1, 4),
            "note": f"less copy {gains['l1_brain'].low:+.4f} to {gains['l1_brain'].high:+.4f}",
        },
        {
            "label": f"Change of {evaluation.main_region}, r",
            "value": NOTHING if change is None else tell_value(change.change["pearson_r"]),
            "note": "not measured" if change is None else tell_ends(change.change["pearson_r"]),
        },
        {
            "label": f"{evaluation.main_region.capitalize()} rise at every step",
            "value": NOTHING if rising is None else f"{rising.value:.0%}",
            "note": "nobody" if rising is None else f"of people · {rising.low:.0%} to {rising.high:.0%}",
        },
    ]


def _tell_sweep(evaluation: AgeingEvaluation) -> str:
    sweep, region = evaluation.sweep, evaluation.main_region
    if not sweep.people:
        return "All people judged are at the end of the training's ages."
    slopes, same = sweep.slope_ml, sweep.same_age
    left = (
        f" {sweep.num_left_out} people at the end of the training's ages are not in it." if sweep.num_left_out else ""
    )
    return (
        f"Over the ages {region} change by {tell_value(slopes['model'])} ml a year ({tell_ends(slopes['model'])}); "
        f"between real visits by {tell_value(slopes['real'])} ({tell_ends(slopes['real'])}). Asked for the age of the "
        f"scan itself, the model is {tell_value(same['l1'], 4)} from where its changes start, in the mean over the "
        f"brain, where the tokenizer's reconstruction is {tell_value(same['l1_reconstruction'], 4)} from the scan; "
        f"the first is within the second in {same['within'].value:.0%} of people.{left}"
    )


def _methods(evaluation: AgeingEvaluation) -> list[str]:
    return [
        "Values are those of the brain between its percentiles 0.5 and 99.5, in [0, 1]; what lies outside the brain "
        f"is 0. PSNR has a data range of 1. SSIM: {SSIM_STATED}; in the brain the mean of its map over the "
        "follow-up's brain. Whole-volume figures are mostly background, on which all agree.",
        tell_perceptual(evaluation.perceptual),
        f"Intervals are percentiles of {evaluation.num_resamples} bootstrap resamples (seed {evaluation.seed}) over "
        "families, or people without a family id. The models are fixed: what another training would give is not in "
        "the interval.",
        "Changed tokens are those in which the follow-up's tokens differ from the previous scan's: copying has none "
        "right. Ceiling is what the tokenizer makes of the true follow-up; rows without tokens have no such figures.",
        "Predicted change is counted from where the same row starts: for the model the tokenizer's reconstruction, "
        "so that what the tokenizer blurs is in both, or the scan, where the run's recipe keeps its detail. The "
        "error of a volume is that of the volume as drawn.",
        "The model is asked as “neuroray generate” asks it by default: it draws nothing, so it tells the same each "
        "time.",
        "The population's row is a regression of each voxel's change on the gap and on the gap times the age, "
        "without a constant, over the training people's pairs, added to the scan. The linear row adds the training "
        "people's rate in the latent space before quantisation to the person's own latent, and decodes it (after "
        "MRExtrap).",
        *_tell_diffusion(evaluation),
        f"Ages of a sweep are {NUM_AGES}, evenly from that of the scan to as far as gaps and ages of the training "
        "reach. Rising at every step means that each is larger than the one before.",
        _tell_cohort(evaluation),
    ]


def _tell_cohort(evaluation: AgeingEvaluation) -> str:
    if not evaluation.is_external:
        return (
            "Held-out people come from the same store as the others: another site, another scanner or other "
            "preprocessing is not shown here."
        )
    number = evaluation.provenance["num_models"]
    several = (
        f" Figures of a pair are means over the {number} models of all folds; ages of a sweep, what is learned from "
        "told brains and the pictures are the first one's."
    )
    return (
        "People come from another store than those of the training. Pairs with an age that the training has not seen "
        f"are left out.{several if number > 1 else ''}"
    )


def _tell_diffusion(evaluation: AgeingEvaluation) -> list[str]:
    if DIFFUSION not in evaluation.row_labels:
        return []
    return [
        "The diffusion is small: a few convolutions on the latent grid, trained for a minute on the training "
        "people's pairs, that draw the change of the latent from noise, on the scan's latent and both ages; four "
        "draws are averaged."
    ]
