"""`neuroray serve`: answers over HTTP with Ray Serve until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.run_record import record_run
from neuroray.serve.config import TOKEN_VARIABLE, ServeConfig, ServeError, digest_token
from neuroray.serve.predictor import read_model_card

APP_NAME = "neuroray"

# On top of the time for an answer, for the upload: a 500 MiB file over a slow line.
_UPLOAD_TIMEOUT_S = 300.0
_START_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Serve trained models over HTTP. Ctrl-C or SIGTERM ends it; requests under way are answered first."""

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]RUN [[NAME=]RUN ...]")]
    """RUN folders or exported model folders; the name in the URL is the architecture's where none is given."""

    host: str = "127.0.0.1"
    """Where to listen. Anything but loopback needs a token in NEURORAY_SERVE_TOKEN."""

    port: int = 8000
    """Port; 0 takes a free one."""

    num_gpus: float = 0.0
    """GPUs of each model replica; 0 computes on the CPU."""

    num_cpus: float = 1.0
    """CPUs of each model replica."""

    min_replicas: int = 1
    """Replicas kept of each model."""

    max_replicas: int = 1
    """Most replicas of each model."""

    max_queued_requests: int = 32
    """Predictions in one ingress at once; one more is answered with 503."""

    max_upload_mb: int = 512
    """Largest upload in MiB."""

    max_map_mb: int = 64
    """Largest compressed map beside an answer in MiB; an answer with a larger one comes without it, and says so."""

    timeout_s: float = 120.0
    """Longest time from a decoded upload to its answer."""

    out: str = "runs/serve"
    """Where run.json goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A service that answers.

    Attributes:
        url: Where it listens.
        model_names: The models by their names in the URL.
    """

    url: str
    model_names: tuple[str, ...]

    def predict_url(self, name: str) -> str:
        """Where scans for a model are posted."""
        return f"{self.url}/v1/models/{name}/predict"


def run(args: Args) -> None:
    """Starts the service, says where it is, and stays until SIGINT or SIGTERM."""
    config = ServeConfig(
        models=name_models(args.models),
        num_gpus=args.num_gpus,
        num_cpus=args.num_cpus,
        min_replicas=args.min_replicas,
        max_replicas=args.max_replicas,
        max_queued_requests=args.max_queued_requests,
        max_upload_bytes=args.max_upload_mb * 2**20,
        max_map_bytes=args.max_map_mb * 2**20,
        timeout_s=args.timeout_s,
        shutdown_timeout_s=args.timeout_s + 60.0,
        token_sha256=_digest_from_environment(),
    )
    with (
        record_run(Path(args.out), job="serve", args=args, config=config.to_json()),
        start_server(config, host=args.host, port=args.port) as server,
        # After the start, which Ctrl-C should break off, and after Ray, whose handler would end its processes at once.
        _stop_signals() as stopped,
    ):
        print(_announce(server, has_token=config.token_sha256 is not None), flush=True)
        stopped.wait()
        print("stopping", flush=True)


@contextlib.contextmanager
def start_server(config: ServeConfig, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    """Serves for the block, and shuts down cleanly at its end.

    Ray is connected to, or started, as `ensure_ray` does it, and is left as it was found.

    Args:
        config: What to serve.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Raises:
        ServeError: an address beyond this machine without a token, a port that is taken, or a Ray cluster on which
            Serve already runs.
    """
    _check_host(host, has_token=config.token_sha256 is not None)
    port = _claim_port(host, port)
    with ensure_ray(num_cpus=_count_cpus(config)):
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation
        from ray.serve.schema import LoggingConfig

        from neuroray.serve.app import build_app

        _check_serve_is_free()
        application = build_app(config)
        with _quiet_driver(), contextlib.ExitStack() as stack:
            stack.callback(serve.shutdown)
            serve.start(
                proxy_location=ProxyLocation.HeadOnly if _is_loopback(host) else ProxyLocation.EveryNode,
                http_options=HTTPOptions(host=host, port=port, request_timeout_s=config.timeout_s + _UPLOAD_TIMEOUT_S),
                logging_config=LoggingConfig(log_level="WARNING"),
            )
            serve.run(application, name=APP_NAME, route_prefix="/")
            server = Server(url=_url(host, port), model_names=tuple(config.models))
            _wait_until_healthy(server)
            yield server


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Names for the URL: what stands before `=`, else the architecture's.

    Raises:
        ServeError: two models under one name.
        PredictorError: a folder without a model.
    """
    named = [_split_name(model) for model in models]
    counts = Counter(name for name, _ in named)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ServeError(f"two models are called {twice[0]}", fix=f"name them: {twice[0]}-a=RUN {twice[0]}-b=RUN")
    return dict(named)


def _split_name(model: str) -> tuple[str, str]:
    name, separator, uri = model.partition("=")
    if separator and "/" not in name:
        return name, _absolute(uri)
    return read_model_card(model).model_name, _absolute(model)


def _absolute(uri: str) -> str:
    # Replicas run in another working directory.
    return uri if "://" in uri else str(Path(uri).resolve())


def _digest_from_environment() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE)
    return digest_token(token) if token else None


def _count_cpus(config: ServeConfig) -> int:
    return -int(-(config.num_ingress_cpus + len(config.models) * max(config.min_replicas, 1) * config.num_cpus) // 1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_host(host: str, *, has_token: bool) -> None:
    # With its HAProxy, Serve listens on all interfaces, whatever it is told.
    everywhere = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if not has_token and (everywhere or not _is_loopback(host)):
        raise ServeError(
            "whoever reaches this address could use the models",
            given=f"{'RAY_SERVE_ENABLE_HA_PROXY=1' if everywhere else f'--host {host}'} and no token",
            expected="loopback, or a token",
            fix=f'export {TOKEN_VARIABLE}=$(python -c "import secrets; print(secrets.token_urlsafe(32))")',
        )


def _claim_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(
                f"cannot listen on {host} port {port}", given=error.strerror, fix="another --port, or 0 for a free one"
            ) from None
        return probe.getsockname()[1]


def _check_serve_is_free() -> None:
    from ray import serve

    if serve.status().proxies:
        raise ServeError(
            "Serve runs on this Ray cluster already, and its address cannot be changed",
            fix="add the models to it: serve deploy (docs/serve.md), or start elsewhere",
        )


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _wait_until_healthy(server: Server) -> None:
    import urllib.request

    deadline = time.monotonic() + _START_TIMEOUT_S
    # Straight to it: a proxy that the environment names does not know this machine's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), opener.open(f"{server.url}/healthz", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise ServeError(f"{server.url} does not answer", expected=f"within {_START_TIMEOUT_S:g} s", fix="see Ray's log")


@contextlib.contextmanager
def _quiet_driver() -> Iterator[None]:
    """Serve tells every step of a deployment in this process too; the caller says what a person needs to know."""
    speaker = logging.getLogger("ray.serve")
    level = speaker.level
    speaker.setLevel(logging.WARNING)
    try:
        yield
    finally:
        speaker.setLevel(level)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        stopped.set()

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(server: Server, *, has_token: bool) -> str:
    token = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if has_token else ""
    lines = [f"serving {', '.join(server.model_names)}", f"  page    {server.url}/docs"]
    lines += [f"  health  {server.url}/healthz"]
    lines += [f"  ask     curl{token} -F file=@scan.nii.gz {server.predict_url(name)}" for name in server.model_names]
    return "\n".join(lines)
