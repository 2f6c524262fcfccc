"""The HTTP interface as a FastAPI application; who computes the answers is handed in, and Ray is not known here."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, get_args

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

import neuroray
from neuroray.config import ConfigError
from neuroray.errors import NeurorayError
from neuroray.platform.data.plan import PlanError
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.generate.ages import GenerationError
from neuroray.platform.models.errors import ModelError
from neuroray.serve.config import ServeConfig, ServeError
from neuroray.serve.docs_page import render_ageing, render_docs
from neuroray.serve.maps import NUM_STEPS
from neuroray.serve.packed_map import PackedReply
from neuroray.serve.prediction import ModelCard
from neuroray.serve.question import MOST_SAMPLES, MOST_STEPS, OLDEST_YEARS, Question, QuestionError, SentFiles
from neuroray.serve.schema import ErrorAnswer, HealthAnswer, ModelAnswer, ModelsAnswer, PredictionAnswer
from neuroray.serve.upload import (
    FILE_FIELD,
    OPTIONS,
    UnknownSuffixError,
    UploadError,
    UploadTooLargeError,
    read_upload,
)
from neuroray.storage.scan import Scan, ScanError

Ask = Callable[[str, Scan, Question], Awaitable[PackedReply]]


class UnknownModelError(ServeError):
    """A model that this service has not loaded."""


class UnauthorizedError(ServeError):
    """A request without the token, or with a wrong one."""


class OverloadedError(ServeError):
    """More requests than the service takes at once."""


class LateError(ServeError):
    """No answer within the time that the service allows."""


class UnavailableError(ServeError):
    """The model's replicas are down or did not answer as they should."""


_STATUS: dict[type[NeurorayError], int] = {
    UploadError: 400,
    QuestionError: 400,
    UnauthorizedError: 401,
    UnknownModelError: 404,
    UploadTooLargeError: 413,
    UnknownSuffixError: 415,
    ScanError: 422,
    ModelError: 422,
    ExplainError: 422,
    GenerationError: 422,
    PlanError: 422,
    ConfigError: 422,
    OverloadedError: 503,
    UnavailableError: 503,
    LateError: 504,
}
_RETRY_AFTER_S = 5
_BEARER = HTTPBearer(auto_error=False, description="the token that the service was started with, if any")
_TOLD = {
    400: "no form with one file in it, or options that are not known or make no sense, also for this model",
    401: "the token is missing or wrong",
    404: "no such model",
    413: "the upload is too large",
    415: "the file's name does not say that it is a scan",
    422: "the file cannot be taken as a scan that this model answers for",
    503: "too many requests at once, or the model is down; try again after the time in `Retry-After`",
    504: "no answer in time",
}
_TELL_NOTHING = ErrorAnswer(
    error="InternalError",
    fault="the service failed on this request",
    fix="whoever runs the service finds the reason in its log, by the X-Request-ID of this answer",
)
_OPTION_TYPES = {
    "sex": {"type": "string", "enum": ["M", "F"]},
    "age_years": {"type": "number", "minimum": 0, "maximum": OLDEST_YEARS},
    "explain": {"type": "boolean", "default": False},
    "num_steps": {"type": "integer", "minimum": 1, "maximum": MOST_STEPS, "default": NUM_STEPS},
    "ages": {"type": "string", "example": "65 70 75"},
    "samples": {"type": "integer", "minimum": 1, "maximum": MOST_SAMPLES, "default": 1},
    "temperature": {"type": "number", "minimum": 0, "default": 0},
    "top_k": {"type": "integer", "minimum": 0, "default": 0},
    "top_p": {"type": "number", "maximum": 1, "default": 1},
    "age_guidance": {"type": "number", "minimum": 0, "default": 1},
    "previous_guidance": {"type": "number", "minimum": 0, "default": 1},
    "seed": {"type": "integer", "minimum": 0, "default": 0},
    "diagnosis": {"type": "string"},
    "allow_outside": {"type": "boolean", "default": False},
    "files": {"type": "string", "enum": list(get_args(SentFiles)), "default": "volumes"},
}
_COMMAND_LINE_OPTION = re.compile(r"--(?P<name>[a-z][a-z-]*)(?P<value>(?: [0-9.]+)*)")
_OPTION_FIELDS = {name: {**_OPTION_TYPES[name], "description": meaning} for name, meaning in OPTIONS.items()}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_FIELD],
                    "properties": {
                        FILE_FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": "one volume as .nii, .nii.gz or .mgz; its name decides only on the format",
                        },
                        **_OPTION_FIELDS,
                    },
                }
            }
        },
    }
}

_logger = logging.getLogger("neuroray.serve")


def build_api(config: ServeConfig, *, cards: dict[str, ModelCard], ask: Ask) -> FastAPI:
    """Makes the application.

    Args:
        config: Limits and the token's digest.
        cards: What is told of each model, by its name in the URL.
        ask: Computes the answer of a named model for a scan and a question; may raise any of this module's errors and
            `ScanError`.
    """
    app = FastAPI(
        title="neuroray",
        version=neuroray.__version__,
        description="Answers for brain scans. Not a medical device: for research, not for diagnosis.",
        docs_url=None,
        redoc_url=None,
    )
    for kind in (NeurorayError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    _add_open_routes(app, cards)
    _add_model_routes(app, config, cards, ask)
    return app


def _add_open_routes(app: FastAPI, cards: dict[str, ModelCard]) -> None:
    names = list(cards)
    ageing = {name: card for name, card in cards.items() if card.ageing is not None}

    @app.get("/healthz", summary="Whether requests are taken")
    async def healthz() -> HealthAnswer:
        return HealthAnswer(models=names)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page, policy = render_docs(app.openapi(), names, FILE_FIELD, has_ageing=bool(ageing))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    if ageing:

        @app.get("/ageing", include_in_schema=False)
        async def slide() -> HTMLResponse:
            page, policy = render_ageing(app.openapi(), ageing, FILE_FIELD)
            return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_model_routes(app: FastAPI, config: ServeConfig, cards: dict[str, ModelCard], ask: Ask) -> None:
    guarded = [Depends(_make_guard(config.token_sha256))]
    gate = _Gate(config.max_queued_requests)

    @app.get("/v1/models", summary="The models that answer here", dependencies=guarded, responses=_told(401))
    async def list_models() -> ModelsAnswer:
        return ModelsAnswer(models=[ModelAnswer.of(name, card) for name, card in cards.items()])

    @app.post(
        "/v1/models/{name}/predict",
        summary="The answer for one scan",
        dependencies=guarded,
        responses=_told(*_TOLD),
        openapi_extra=_FORM,
    )
    async def predict(name: str, request: Request) -> PredictionAnswer:
        if name not in cards:
            raise UnknownModelError(
                "there is no such model here", given=repr(name[:64]), expected=f"one of {', '.join(cards)}"
            )
        with gate.enter():
            upload = await read_upload(
                request, max_upload_bytes=config.max_upload_bytes, max_volume_bytes=config.max_volume_bytes
            )
            return PredictionAnswer.of(name, await ask(name, upload.scan, upload.question))


def _make_guard(token_sha256: str | None) -> Callable[..., Awaitable[None]]:
    async def guard(presented: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if token_sha256 is None:
            return
        digest = hashlib.sha256((presented.credentials if presented else "").encode()).hexdigest()
        if not hmac.compare_digest(digest, token_sha256):
            raise UnauthorizedError(
                "this service asks for a token",
                given="a wrong one" if presented else "none",
                expected="the header Authorization: Bearer TOKEN",
            )

    return guard


class _Gate:
    """Counts the requests inside and turns away those that are too many, before anything of them is read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        if self._inside >= self._limit:
            raise OverloadedError(
                "too many requests at once", expected=f"at most {self._limit}", fix=f"wait {_RETRY_AFTER_S} s"
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def _told(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorAnswer, "description": _TOLD[code]} for code in codes}


def _tell_fault(error: NeurorayError) -> ErrorAnswer:
    """The error's own words; where they name an option of the command line, the form's field."""
    told = error.to_json()
    if told["fix"] is not None:
        told["fix"] = _COMMAND_LINE_OPTION.sub(_name_field, told["fix"])
    return ErrorAnswer.model_validate(told)


def _name_field(option: re.Match[str]) -> str:
    name, value = option["name"].replace("-", "_"), option["value"].strip() or "true"
    return f'-F "{name}={value}"' if name in OPTIONS else option[0]


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, NeurorayError):
        status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
        body = _tell_fault(error) if status != 500 else _TELL_NOTHING
    elif isinstance(error, HTTPException):
        status, body = error.status_code, ErrorAnswer(error="RequestError", fault=str(error.detail))
    else:
        status, body = 500, _TELL_NOTHING
    if status == 500:
        _logger.error("a request to %s failed", request.url.path, exc_info=error)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(_RETRY_AFTER_S)}}.get(status)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)
