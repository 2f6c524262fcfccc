"""The error that all layers derive from."""

import pickle

from neuroray.config import ConfigError
from neuroray.errors import NeurorayError


def test_an_error_tells_given_expected_and_fix_in_one_line():
    error = NeurorayError("the axis is empty", given="shape (0, 3)", expected="at least one voxel", fix="export again")
    assert str(error) == (
        "the axis is empty; given shape (0, 3); expected at least one voxel; likely fix: export again"
    )
    assert "\n" not in str(error)


def test_an_error_crosses_a_process_border_whole():
    error = ConfigError("wrong", given=3, expected=4, fix="count again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ConfigError
    assert again.to_json() == error.to_json()
    assert isinstance(again, ValueError)
