"""ServeConfig: which models answer over HTTP, on how much hardware, and where the limits lie."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from neuroray.config import Config
from neuroray.errors import NeurorayError

TOKEN_VARIABLE = "NEURORAY_SERVE_TOKEN"

_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHORTEST_TOKEN = 16


class ServeError(NeurorayError, ValueError):
    """Serving that cannot be started as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(Config):
    """One HTTP service over any number of models; each model is a deployment of its own that scales by itself.

    Attributes:
        models: Name in the URL to a RUN folder or an exported model folder (path or URI that every replica can read).
        num_gpus: GPUs of each model replica; may be a fraction, which shares a GPU by bookkeeping only. 0: the CPU.
        num_cpus: CPUs of each model replica; also the number of threads that torch uses there.
        min_replicas: Replicas kept of each model; 0 lets an idle model go, at the price of a slow first answer.
        max_replicas: Most replicas of each model.
        target_ongoing_requests: Requests per replica that the autoscaler aims at.
        max_ongoing_requests: Requests sent to one replica at a time: one computes, the others are on their way.
        max_queued_requests: Requests that wait for a model at one ingress; one more is turned away with 503.
        num_ingress_cpus: CPUs of each ingress replica, which takes uploads and decodes them.
        max_ingress_replicas: Most ingress replicas.
        timeout_s: Longest time from decoded upload to answer; after it 504.
        shutdown_timeout_s: How long a replica that is told to stop may finish its work.
        max_upload_bytes: Largest request body; above it 413, before the rest is read.
        max_volume_bytes: Largest decoded volume; above it 422.
        max_map_bytes: Largest compressed map that goes with an answer; above it the answer comes without, and says so.
            Of brains at other ages: of all files together.
        token_sha256: SHA-256 (hex) of the bearer token that `/v1` asks for; None: open. Only the digest travels through
            the cluster, never the token.
    """

    models: dict[str, str]
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 2.0
    max_ongoing_requests: int = 2
    max_queued_requests: int = 32
    num_ingress_cpus: float = 1.0
    max_ingress_replicas: int = 1
    timeout_s: float = 120.0
    shutdown_timeout_s: float = 180.0
    max_upload_bytes: int = 512 * 2**20
    max_volume_bytes: int = 2 * 2**30
    max_map_bytes: int = 64 * 2**20
    token_sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ServeError("there is no model to serve", fix="name at least one RUN folder")
        for name in self.models:
            if not _MODEL_NAME.fullmatch(name):
                raise ServeError(
                    "a model's name is part of its URL", given=repr(name), expected="lower case, digits, . _ -"
                )
        self._check_counts()
        self._check_times()
        if self.token_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.token_sha256):
            raise ServeError("token_sha256 is no SHA-256 in hex", fix="make it with neuroray.serve.config.digest_token")

    def _check_counts(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ServeError(
                "the numbers of replicas do not fit together",
                given=f"{self.min_replicas} to {self.max_replicas}",
                expected="0 <= min_replicas <= max_replicas, and at least 1 at most",
            )
        if self.num_gpus < 0 or self.num_cpus < 0 or self.num_ingress_cpus < 0:
            raise ServeError("a replica cannot take less than no CPU or GPU")
        positive = ("max_ongoing_requests", "max_queued_requests", "max_ingress_replicas", "max_upload_bytes")
        for name in (*positive, "max_map_bytes"):
            if getattr(self, name) < 1:
                raise ServeError(f"{name} is too small", given=getattr(self, name), expected="at least 1")

    def _check_times(self) -> None:
        if not 0 < self.timeout_s <= self.shutdown_timeout_s:
            raise ServeError(
                "a replica must be allowed to finish what it has begun",
                given=f"timeout_s {self.timeout_s}, shutdown_timeout_s {self.shutdown_timeout_s}",
                expected="0 < timeout_s <= shutdown_timeout_s",
            )


def digest_token(token: str) -> str:
    """The SHA-256 (hex) of a bearer token, which is all that a replica needs to know of it.

    Raises:
        ServeError: the token is too short to stand against guessing.
    """
    if len(token) < _SHORTEST_TOKEN:
        raise ServeError(
            "the token is too short",
            given=f"{len(token)} characters",
            expected=f"at least {_SHORTEST_TOKEN}",
            fix=f'{TOKEN_VARIABLE}=$(python -c "import secrets; print(secrets.token_urlsafe(32))")',
        )
    return hashlib.sha256(token.encode()).hexdigest()
