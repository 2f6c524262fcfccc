"""ServeConfig: what does not fit together is refused before anything starts."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from neuroray.config import ConfigError
from neuroray.serve.config import ServeConfig, ServeError, digest_token

MODELS = {"dinoatten3d": "runs/one"}


def test_it_survives_json() -> None:
    config = ServeConfig(models=MODELS, num_gpus=0.5, max_replicas=3, token_sha256=digest_token("x" * 16))
    assert ServeConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"models": {}}, "no model to serve"),
        ({"models": {"a/b": "runs/one"}}, "part of its URL"),
        ({"models": {"": "runs/one"}}, "part of its URL"),
        ({"models": {"..": "runs/one"}}, "part of its URL"),
        ({"min_replicas": 2}, "do not fit together"),
        ({"min_replicas": 0, "max_replicas": 0}, "do not fit together"),
        ({"num_gpus": -1.0}, "less than no"),
        ({"max_queued_requests": 0}, "too small"),
        ({"max_upload_bytes": 0}, "too small"),
        ({"max_map_bytes": 0}, "too small"),
        ({"timeout_s": 200.0}, "allowed to finish"),
        ({"timeout_s": 0.0}, "allowed to finish"),
        ({"token_sha256": "secret"}, "no SHA-256"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ServeError, match=fault):
        ServeConfig(**({"models": MODELS} | changes))


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="num_tpus"):
        ServeConfig.from_json({"models": MODELS, "num_tpus": 1})


def test_a_token_is_kept_as_its_digest() -> None:
    assert digest_token("sixteen letters!") == hashlib.sha256(b"sixteen letters!").hexdigest()


def test_a_short_token_is_refused_without_repeating_it() -> None:
    with pytest.raises(ServeError, match="15 characters") as refused:
        digest_token("fifteen letters")
    assert "fifteen letters" not in str(refused.value)
