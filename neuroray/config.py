"""Config: the base of every configuration, a frozen dataclass that goes to JSON and back and knows its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from neuroray.errors import NeurorayError


class ConfigError(NeurorayError, ValueError):
    """A configuration that cannot be built: an unknown field, a missing one, or a value of the wrong type."""


def without_effect(default: Any) -> Any:
    """A field that changes no result (a log interval, a number of workers) and stays out of the fingerprint."""
    return dataclasses.field(default=default, metadata={"fingerprint": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Base of all configurations.

    Fields may be JSON scalars, `Literal`s, tuples, dicts with string keys, unions of these with None, and other
    `Config`s. Subclasses are declared `@dataclass(frozen=True, slots=True, kw_only=True)` too, and check themselves in
    `__post_init__`.
    """

    def to_json(self) -> dict[str, Any]:
        """Every field, ready for `json.dumps`; tuples become lists."""
        return {field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Builds the config that `to_json` described.

        Raises:
            ConfigError: an unknown or missing field, or a value that does not fit its declared type.
        """
        hints = get_type_hints(cls)
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no field {', '.join(unknown)}",
                expected=f"only {', '.join(known)}",
                fix="correct the name, or use the version of neuroray that wrote this file",
            )
        missing = [name for name, field in known.items() if name not in data and _is_required(field)]
        if missing:
            raise ConfigError(f"{cls.__name__} lacks the required field {', '.join(missing)}", given=sorted(data))
        return cls(**{name: _decode(value, hints[name], f"{cls.__name__}.{name}") for name, value in data.items()})

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that affects a result; fields declared `without_effect` are left out, at any depth."""
        canonical = json.dumps(_effective(self), sort_keys=True, separators=(",", ":"), allow_nan=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def write_json(self, path: Path) -> None:
        """Writes `to_json` as indented text."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read_json(cls, path: Path) -> Self:
        """Reads what `write_json` wrote."""
        return cls.from_json(json.loads(path.read_text()))


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _encode(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _effective(value: Any) -> Any:
    if isinstance(value, Config):
        kept = [field for field in dataclasses.fields(value) if field.metadata.get("fingerprint", True)]
        return {field.name: _effective(getattr(value, field.name)) for field in kept}
    if isinstance(value, tuple | list):
        return [_effective(item) for item in value]
    if isinstance(value, dict):
        return {key: _effective(item) for key, item in value.items()}
    return _encode(value)


def _decode(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _decode_union(value, get_args(hint), where)
    if origin is typing.Literal:
        return _accept(value, value in get_args(hint), where, f"one of {', '.join(map(repr, get_args(hint)))}")
    if origin is tuple:
        return _decode_tuple(value, get_args(hint), where)
    if origin is dict:
        table = _accept(value, isinstance(value, dict), where, "a JSON object")
        return {key: _decode(item, get_args(hint)[1], f"{where}[{key!r}]") for key, item in table.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_json(_accept(value, isinstance(value, dict), where, "a JSON object"))
    if hint is Path:
        return Path(_accept(value, isinstance(value, str), where, "a path as text"))
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_accept(value, number, where, "a number"))
    if hint is int:
        return _accept(value, isinstance(value, int) and not isinstance(value, bool), where, "an integer")
    return _accept(value, isinstance(value, hint), where, hint.__name__)


def _decode_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    faults = []
    for option in options:
        if option is type(None):
            if value is None:
                return None
            continue
        try:
            return _decode(value, option, where)
        except ConfigError as fault:
            faults.append(str(fault))
    raise ConfigError(f"{where} fits none of its types ({'; '.join(faults)})", given=repr(value))


def _decode_tuple(value: Any, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    _accept(value, isinstance(value, list | tuple), where, "a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(item, items[0], f"{where}[{index}]") for index, item in enumerate(value))
    _accept(value, len(value) == len(items), where, f"{len(items)} items")
    return tuple(
        _decode(item, hint, f"{where}[{index}]") for index, (item, hint) in enumerate(zip(value, items, strict=True))
    )


def _accept(value: Any, fits: bool, where: str, expected: str) -> Any:
    if not fits:
        raise ConfigError(f"{where} has the wrong value", given=repr(value), expected=expected)
    return value
