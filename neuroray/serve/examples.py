"""Answers as the documentation page shows them: of a model of slices, of one of runs, and of one of age."""

from __future__ import annotations

from typing import Any

MODEL: dict[str, Any] = {
    "name": "dinoatten3d",
    "kind": "dinoatten3d",
    "version": "5f1c2e9a4b7d",
    "classes": ["control", "patient"],
    "target": "diagnosis",
    "targets": [{"name": "diagnosis", "kind": "class", "classes": ["control", "patient"], "unit": ""}],
    "modality": "T1w",
    "profile": "native",
    "profile_sha256": "ff1f2ee69173...",
    "num_models": 1,
    "fingerprints": {
        "weights_sha256": "5f1c2e9a4b7d...",
        "encoder_sha256": "91ab77...",
        "feature_fingerprint": "c04f3d...",
    },
}
_MODEL_OF_RUNS: dict[str, Any] = {
    "name": "brainmt",
    "kind": "brainmt",
    "version": "0b77d1f3c8aa",
    "classes": [],
    "target": "cognition",
    "targets": [{"name": "cognition", "kind": "number", "classes": [], "unit": ""}],
    "modality": "bold",
    "profile": "fmri_minimal",
    "profile_sha256": "7a60d4c2b915...",
    "num_models": 1,
    "fingerprints": {"weights_sha256": "0b77d1f3c8aa..."},
}
PREDICTION: dict[str, Any] = {
    "label": "control",
    "probabilities": {"control": 0.83, "patient": 0.17},
    "targets": [
        {
            "name": "diagnosis",
            "label": "control",
            "probabilities": {"control": 0.83, "patient": 0.17},
            "value": None,
            "unit": "",
            "quantiles": {},
            "interval": None,
            "no_interval": None,
            "spread": None,
            "num_windows": 1,
            "num_models": 1,
            "model_spread": None,
        }
    ],
    "warnings": ["voxels of 2 x 2 x 2 mm; the model was trained on 1 x 1 x 1 mm to 1 x 1 x 1.2 mm"],
    "profile": "native",
    "profile_sha256": "ff1f2ee69173...",
    "model": MODEL,
    "attention_axis": "axial",
    "attention": [{"slice_index": 61, "position_mm": 12.0, "weight": 0.031}],
    "motion": None,
    "gap": None,
    "map": {
        "facts": {"method": "attention", "target": "control", "quantity": "share of attention in each slice"},
        "png_base64": "iVBORw0KGgo...",
        "nifti_base64": "H4sIAAAAAAAC...",
        "nifti_size_bytes": 48211,
        "no_nifti": None,
    },
}
PREDICTION_OF_RUN: dict[str, Any] = {
    "label": None,
    "probabilities": {},
    "targets": [
        {
            "name": "cognition",
            "label": None,
            "probabilities": {},
            "value": 104.2,
            "unit": "",
            "quantiles": {},
            "interval": {"low": 84.9, "high": 123.5, "level": 0.9, "num_people": 24},
            "no_interval": None,
            "spread": 3.1,
            "num_windows": 4,
            "num_models": 1,
            "model_spread": None,
        }
    ],
    "warnings": ["a repetition time of 0.8 s; the model was trained on 2 s"],
    "profile": "fmri_minimal",
    "profile_sha256": "7a60d4c2b915...",
    "model": _MODEL_OF_RUNS,
    "attention_axis": None,
    "attention": [],
    "motion": {"fd_mean_mm": 0.11, "fd_max_mm": 0.62, "dvars": 14.2, "num_lost": 0},
    "gap": None,
    "map": None,
}
PREDICTION_OF_AGE: dict[str, Any] = PREDICTION_OF_RUN | {
    "targets": [
        {
            "name": "age_years",
            "label": None,
            "probabilities": {},
            "value": 47.3,
            "unit": "years",
            "quantiles": {},
            "interval": {"low": 38.9, "high": 55.7, "level": 0.9, "num_people": 61},
            "no_interval": None,
            "spread": None,
            "num_windows": 1,
            "num_models": 1,
            "model_spread": None,
        }
    ],
    "warnings": [],
    "profile": "native",
    "profile_sha256": "ff1f2ee69173...",
    "model": {
        "name": "brainrotvit",
        "kind": "brainrotvit",
        "version": "77c0a2e41d90",
        "classes": [],
        "target": "age_years",
        "targets": [{"name": "age_years", "kind": "number", "classes": [], "unit": "years"}],
        "modality": "T1w",
        "profile": "native",
        "profile_sha256": "ff1f2ee69173...",
        "num_models": 1,
        "fingerprints": {
            "weights_sha256": "77c0a2e41d90...",
            "encoder_sha256": "0d35be...",
            "feature_fingerprint": "b1e9c4...",
        },
    },
    "motion": None,
    "gap": {
        "age_years": 44.0,
        "raw_years": 3.3,
        "interval": {"low": -5.1, "high": 11.7, "level": 0.9, "num_people": 61},
        "beheshti_years": 2.6,
        "cole_years": 3.1,
        "sds_of_controls": 0.7,
        "no_correction": None,
        "fitted_on": "validation",
        "controls": ["control"],
        "num_controls": 58,
        "control_ages_years": [20.4, 81.2],
    },
}
