"""The pages at `/docs` and `/ageing`: the interface as people use it, each one file that fetches nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuroray.serve.prediction import ModelCard
from neuroray.serve.question import MOST_AGES


def render_docs(
    openapi: dict[str, Any], model_names: list[str], file_field: str, *, has_ageing: bool = False
) -> tuple[str, str]:
    """Draws the page of an OpenAPI description.

    Args:
        openapi: The description, as FastAPI makes it.
        model_names: The models to offer in the form that tries one out.
        file_field: The form field that carries the scan.
        has_ageing: Whether the page with the slider is served.

    Returns:
        The page, and the Content-Security-Policy to send with it: nothing is loaded, and only its own script runs.
    """
    return _render(
        "docs.html",
        info=openapi["info"],
        operations=list(_operations(openapi)),
        models=model_names,
        file_field=file_field,
        has_ageing=has_ageing,
    )


def render_ageing(openapi: dict[str, Any], cards: Mapping[str, ModelCard], file_field: str) -> tuple[str, str]:
    """Draws the page with the slider.

    Args:
        openapi: As for `render_docs`.
        cards: The models that tell brains at other ages.
        file_field: The form field that carries the scan.

    Returns:
        As `render_docs`.
    """
    return _render("ageing.html", info=openapi["info"], models=cards, file_field=file_field, most_ages=MOST_AGES)


def _render(template: str, **facts: Any) -> tuple[str, str]:
    nonce = secrets.token_urlsafe(16)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**facts, nonce=nonce)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:"
    )
    return page, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _operations(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "guarded": bool(operation.get("security")),
            "form": _form_fields(operation),
            "responses": [_response(openapi, code, answer) for code, answer in operation["responses"].items()],
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def _form_fields(operation: dict[str, Any]) -> dict[str, str]:
    content = operation.get("requestBody", {}).get("content", {})
    properties = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
    return {name: field.get("description", "") for name, field in properties.items()}


def _response(openapi: dict[str, Any], code: str, answer: dict[str, Any]) -> dict[str, Any]:
    reference = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
    schema = openapi["components"]["schemas"][reference.rsplit("/", 1)[1]] if reference else {}
    fields = {
        name: {"type": _type_name(field), "description": field.get("description", "")}
        for name, field in schema.get("properties", {}).items()
    }
    return {
        "code": code,
        "description": answer["description"],
        "schema": schema.get("title"),
        "fields": fields,
        "examples": schema.get("examples", []),
    }


def _type_name(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[1]
    if "anyOf" in field:
        return " or ".join(_type_name(option) for option in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type_name(field['items'])}"
    return str(field.get("type", "any"))
