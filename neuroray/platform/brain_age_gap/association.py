"""Does the gap go with a diagnosis: logistic regression with age, sex and site held, and what keeps it from answering.

Fitted by statsmodels; whether maximum likelihood has a solution at all is found first by a linear programme, for
where a line separates the groups the fit runs off to infinity and gives odds ratios that mean nothing.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog
from scipy.special import expit

from neuroray.platform.brain_age_gap.answers import AgeAnswer
from neuroray.platform.brain_age_gap.effects import Effect, Z

FEWEST_PER_SITE = 10
_POOLED = "pooled small sites"
# Of standardised columns; what the linear programme gains beyond this is no rounding.
_SEPARATING_GAIN = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """The odds of the diagnosis by the gap, other things equal.

    Attributes:
        covariates: What was held; without `site` where the fit with sites was impossible.
        num_controls: People in the fit.
        num_cases: As above.
        sd_years: Of the gap among them.
        per_sd: Odds ratio per standard deviation of the gap.
        per_year: Odds ratio per year of it.
        is_separated: The groups can be told apart without error by these columns: no odds ratio exists.
        notes: What was left out or given up, and why.
    """

    covariates: tuple[str, ...]
    num_controls: int
    num_cases: int
    sd_years: float
    per_sd: Effect
    per_year: Effect
    is_separated: bool = False
    notes: tuple[str, ...] = field(default=())


def associate(people: Sequence[AgeAnswer], gaps: Float[np.ndarray, " row"], is_case: np.ndarray) -> Association:
    """Logistic regression of the diagnosis on the gap, age, sex and site.

    Sites with fewer than ten people are pooled. People of unknown sex, or without a gap, are left out. Where the fit
    with sites is impossible, it is repeated with age and sex; where that is impossible too, there is no odds ratio.
    Where people are related, standard errors are those of families (clusters).

    Args:
        people: One row a person.
        gaps: Their gap in years.
        is_case: Whether he or she has the diagnosis; the others are controls.
    """
    notes: list[str] = []
    kept = np.array([row.sex is not None for row in people], dtype=bool) & np.isfinite(gaps)
    if not kept.all():
        notes.append(f"{int((~kept).sum())} people without a known sex or a gap were left out.")
    rows = [row for row, keep in zip(people, kept, strict=True) if keep]
    gaps, is_case = gaps[kept], np.asarray(is_case, dtype=bool)[kept]
    counts = (int((~is_case).sum()), int(is_case.sum()))
    sd = float(gaps.std(ddof=1)) if len(gaps) > 1 else float("nan")
    if min(counts) < 2 or not sd > 0:
        notes.append("Too few people of a group, or a gap that is the same of everybody: nothing was fitted.")
        return _give_up((), counts, sd, notes, is_separated=False)
    told, covariates = "", ()
    for covariates in _attempts(rows):
        design = _design(rows, gaps / sd, covariates)
        if told:
            notes.append(f"The fit with site was given up ({told}); age and sex are held instead.")
        told = _fault(design, is_case)
        if not told:
            return _fit(design, is_case, rows, covariates, sd, notes)
    notes.append(f"No odds ratio exists: {told}.")
    return _give_up(covariates, counts, sd, notes, is_separated="separate" in told)


def is_separable(design: Float[np.ndarray, "row column"], is_case: np.ndarray) -> bool:
    """Whether some combination of the columns separates the groups, ties on the border allowed (Konis 2007).

    Then the likelihood has no maximum. The columns should be of like size, with a constant among them.
    """
    signed = np.where(is_case, 1.0, -1.0)[:, None] * design
    found: Any = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(signed)), bounds=(-1, 1), method="highs")
    return bool(-found.fun > _SEPARATING_GAIN * len(signed))


def _attempts(rows: Sequence[AgeAnswer]) -> list[tuple[str, ...]]:
    sites = set(_pool_sites(rows))
    plain = ("age", "sex")
    return [(*plain, "site"), plain] if len(sites) > 1 else [plain]


def _pool_sites(rows: Sequence[AgeAnswer]) -> list[str]:
    counts = Counter(row.site or _POOLED for row in rows)
    return [site if counts[site] >= FEWEST_PER_SITE else _POOLED for site in (row.site or _POOLED for row in rows)]


def _design(
    rows: Sequence[AgeAnswer], gaps: Float[np.ndarray, " row"], covariates: tuple[str, ...]
) -> Float[np.ndarray, "row column"]:
    """The gap first; columns that are the same of everybody (one sex alone) are left out, except the constant."""
    ages = np.array([row.age_years for row in rows])
    columns = [gaps, (ages - ages.mean()) / (ages.std() or 1.0)]
    sexes = [row.sex for row in rows]
    columns += [np.array([sex == level for sex in sexes], dtype=float) for level in sorted(set(map(str, sexes)))[1:]]
    if "site" in covariates:
        sites = _pool_sites(rows)
        # The largest site is what the others are compared with.
        levels = [name for name, _ in Counter(sites).most_common()]
        columns += [np.array([site == level for site in sites], dtype=float) for level in levels[1:]]
    return np.stack([*(column for column in columns if column.std() > 0), np.ones(len(rows))], axis=1)


def _fault(design: Float[np.ndarray, "row column"], is_case: np.ndarray) -> str:
    """Why there is no maximum of the likelihood; empty where there is one."""
    if len(design) <= design.shape[1]:
        return f"{len(design)} people for {design.shape[1]} coefficients"
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return "gap, age, sex and site are not independent of each other"
    if is_separable(design, is_case):
        return "the columns separate the groups without error"
    return ""


def _fit(
    design: Float[np.ndarray, "row column"],
    is_case: np.ndarray,
    rows: Sequence[AgeAnswer],
    covariates: tuple[str, ...],
    sd: float,
    notes: Sequence[str],
) -> Association:
    import statsmodels.api as sm

    kin = [row.kin for row in rows]
    options: dict[str, Any] = {}
    if len(set(kin)) < len(kin):
        _, clusters = np.unique(kin, return_inverse=True)
        options = {"cov_type": "cluster", "cov_kwds": {"groups": clusters}}
        notes = [*notes, f"Standard errors are those of {len(set(kin))} families or people."]
    fitted = _maximise(sm.Logit(is_case.astype(float), design), options)
    # The score at a maximum is zero; where it is not, no maximum was found.
    score = np.inf if fitted is None else np.abs(design.T @ (is_case - expit(design @ fitted.params))).max()
    if fitted is None or not score < 1e-4 * len(design):
        counts = (int((~is_case).sum()), int(is_case.sum()))
        return _give_up(covariates, counts, sd, [*notes, "The fit did not come to an end."], is_separated=False)
    beta, error, p_value = float(fitted.params[0]), float(fitted.bse[0]), float(fitted.pvalues[0])
    return Association(
        covariates=covariates,
        num_controls=int((~is_case).sum()),
        num_cases=int(is_case.sum()),
        sd_years=sd,
        per_sd=_odds_ratio(beta, error, p_value),
        per_year=_odds_ratio(beta / sd, error / sd, p_value),
        notes=tuple(notes),
    )


def _maximise(model: Any, options: dict[str, Any]) -> Any:
    """The fit by Newton's steps; None where these end in a matrix that cannot be inverted."""
    with warnings.catch_warnings():
        # Whether a maximum was found is judged by the score.
        warnings.simplefilter("ignore")
        try:
            return model.fit(disp=0, maxiter=200, **options)
        except np.linalg.LinAlgError:
            return None


def _odds_ratio(beta: float, error: float, p_value: float) -> Effect:
    low, high = np.exp([beta - Z * error, beta + Z * error])
    return Effect(value=float(np.exp(beta)), low=float(low), high=float(high), p_value=p_value)


def _give_up(
    covariates: tuple[str, ...], counts: tuple[int, int], sd: float, notes: Sequence[str], *, is_separated: bool
) -> Association:
    nothing = Effect(value=float("nan"))
    return Association(
        covariates=covariates,
        num_controls=counts[0],
        num_cases=counts[1],
        sd_years=sd,
        per_sd=nothing,
        per_year=nothing,
        is_separated=is_separated,
        notes=tuple(notes),
    )
