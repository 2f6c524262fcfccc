"""Config: JSON there and back, fingerprints, and what is refused."""

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroray.config import Config, ConfigError, without_effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Config):
    width: int
    rate: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(Config):
    name: str
    inner: Inner
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[str, int] = ("a", 1)
    maybe: int | None = None
    either: int | str = 0
    labels: dict[str, float] | None = None
    where: Path = Path("here")
    workers: int = without_effect(4)


EXAMPLE = Outer(name="n", inner=Inner(width=3))

CONFIGS = st.builds(
    Outer,
    name=st.text(),
    inner=st.builds(Inner, width=st.integers(), rate=st.floats(allow_nan=False)),
    mode=st.sampled_from(["fast", "exact"]),
    sizes=st.lists(st.integers()).map(tuple),
    pair=st.tuples(st.text(), st.integers()),
    maybe=st.none() | st.integers(),
    either=st.integers() | st.text(),
    labels=st.none() | st.dictionaries(st.text(), st.floats(allow_nan=False)),
    where=st.just(Path("a/b")),
    workers=st.integers(),
)


@given(config=CONFIGS)
def test_a_config_survives_json_and_pickle(config: Outer):
    assert Outer.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_survives_a_file(tmp_path: Path):
    EXAMPLE.write_json(tmp_path / "config.json")
    assert Outer.read_json(tmp_path / "config.json") == EXAMPLE


def test_only_what_affects_a_result_changes_the_fingerprint():
    assert replace(EXAMPLE, workers=99).fingerprint() == EXAMPLE.fingerprint()
    assert replace(EXAMPLE, inner=Inner(width=4)).fingerprint() != EXAMPLE.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "no field nmae"),
        ({"mode": "slow"}, r"Outer.mode.*'slow'.*'fast', 'exact'"),
        ({"sizes": [1, "two"]}, r"Outer.sizes\[1\]"),
        ({"pair": ["a"]}, "2 items"),
        ({"inner": {"width": 2.5}}, "Inner.width.*integer"),
        ({"inner": {"width": True}}, "Inner.width.*integer"),
        ({"inner": 7}, "JSON object"),
        ({"maybe": "x"}, "fits none"),
        ({"labels": {"a": "b"}}, r"labels\['a'\]"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Outer.from_json(EXAMPLE.to_json() | change)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="lacks the required field inner"):
        Outer.from_json({"name": "n"})


def test_an_integer_is_taken_where_a_number_is_asked_for():
    rate = Outer.from_json(EXAMPLE.to_json() | {"inner": {"width": 1, "rate": 2}}).inner.rate
    assert isinstance(rate, float)
    assert rate == 2.0
