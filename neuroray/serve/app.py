"""The Ray Serve application: one deployment per model, and an ingress that takes uploads and hands scans on."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from neuroray.errors import NeurorayError
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.prediction import ModelCard
from neuroray.serve.predictor import load_predictor, read_model_card
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import LateError, OverloadedError, UnavailableError, build_api
from neuroray.storage.scan import Scan

# Requests that one ingress replica holds at all, health checks included; predictions have a limit of their own.
_MOST_INGRESS_REQUESTS = 256
_MOST_START_ATTEMPTS = 3


def build_app(config: ServeConfig | dict[str, Any]) -> Application:
    """Makes the application that `serve.run`, `serve build` and `serve deploy` take.

    Args:
        config: A `ServeConfig`, or its JSON: what stands under `args` in a Serve YAML file whose `import_path` is
            `neuroray.serve.app:build_app`.

    Raises:
        ConfigError: unknown or ill-typed fields.
        ServeError: fields that do not fit together.
        PredictorError: a folder in `models` that holds no model.
    """
    if isinstance(config, dict):
        config = ServeConfig.from_json(config)
    cards = {name: read_model_card(uri) for name, uri in config.models.items()}
    replicas = {name: _deploy_model(name, config) for name in config.models}
    make_deployment = serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": config.num_ingress_cpus},
        autoscaling_config={"min_replicas": 1, "max_replicas": config.max_ingress_replicas},
        max_ongoing_requests=_MOST_INGRESS_REQUESTS,
        max_queued_requests=_MOST_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=config.shutdown_timeout_s,
        max_constructor_retry_count=_MOST_START_ATTEMPTS,
    )
    return make_deployment(Ingress).bind(config, cards, replicas)


class ModelReplica:
    """One loaded model; volumes wait here while it computes one at a time."""

    def __init__(self, uri: str, device: str, max_map_bytes: int) -> None:
        self._predictor = load_predictor(uri, device=device)
        self._max_map_bytes = max_map_bytes
        self._turn = asyncio.Lock()

    async def predict(self, scan: Scan, question: Question) -> PackedReply:
        """The answer for a scan; the event loop stays free for health checks meanwhile."""
        async with self._turn:
            return await asyncio.to_thread(self._answer, scan, question)

    def _answer(self, scan: Scan, question: Question) -> PackedReply:
        # The map becomes a file here: packing takes seconds, which the ingress has not.
        return pack_reply(ask_predictor(self._predictor, scan, question), max_map_bytes=self._max_map_bytes)


@serve.ingress()
class Ingress:
    """Takes requests: checks, decodes, asks a model, and says in HTTP what came of it."""

    def __init__(self, config: ServeConfig, cards: dict[str, ModelCard], replicas: dict[str, DeploymentHandle]) -> None:
        self._config = config
        self._cards = cards
        # By reference, a volume goes through the object store, whose messages have no cap; by value (the default where
        # Serve is tuned for throughput) a message ends at 4 MiB.
        self._replicas = {name: handle.options(_by_reference=True) for name, handle in replicas.items()}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._config, cards=self._cards, ask=self.ask)

    async def ask(self, name: str, scan: Scan, question: Question) -> PackedReply:
        """Asks a model's deployment; see `ask_replica`."""
        return await ask_replica(self._replicas[name], scan, question, name=name, timeout_s=self._config.timeout_s)


async def ask_replica(
    replica: DeploymentHandle, scan: Scan, question: Question, *, name: str, timeout_s: float
) -> PackedReply:
    """Sends a scan to a model's deployment and waits for the answer.

    Raises:
        OverloadedError: its queue is full.
        LateError: it did not answer in time; the request is withdrawn.
        UnavailableError: it has no replica that works.
        NeurorayError: whatever the model itself has to say of the scan, as it said it.
    """
    response = replica.predict.remote(scan, question)
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except TimeoutError:
        response.cancel()
        raise LateError(f"{name} did not answer in time", expected=f"an answer within {timeout_s:g} s") from None
    except BackPressureError:
        raise OverloadedError(f"too many requests wait for {name}", fix="try again later") from None
    except RayTaskError as failure:
        if isinstance(failure.cause, NeurorayError):
            raise failure.cause from None
        raise
    except (RayError, RayServeException) as failure:
        raise UnavailableError(f"{name} is not available", fix="try again later") from failure


def _deploy_model(name: str, config: ServeConfig) -> Application:
    make_deployment = serve.deployment(
        name=f"model-{name}",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
        },
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        graceful_shutdown_timeout_s=config.shutdown_timeout_s,
        max_constructor_retry_count=_MOST_START_ATTEMPTS,
    )
    return make_deployment(ModelReplica).bind(
        config.models[name], "cuda" if config.num_gpus > 0 else "cpu", config.max_map_bytes
    )
