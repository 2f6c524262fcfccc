import os

import pytest
from contracts.store_contract import StoreContract
from contracts.swift_server import PYTHON as SWIFT

_RACES = ("test_threads_that_write_at_once_lose_nothing", "test_processes_that_write_at_once_lose_nothing")


@pytest.mark.s3
class TestStoreOnS3(StoreContract):
    num_flips = 1  # each costs some forty requests

    @pytest.fixture
    def store_uri(self, s3_bucket: str) -> str:
        return f"{s3_bucket}/cohort/store"

    @pytest.fixture(autouse=True)
    def expect_lost_rows_of_racing_writers_on_swift(self, request: pytest.FixtureRequest) -> None:
        """Swift looks whether an object is there and puts it in two steps, so that two commits can both be told yes."""
        if os.environ.get(SWIFT) and request.node.originalname in _RACES:
            reason = (
                "Swift's If-None-Match is no atomic step: of two commits at once the later takes the earlier's place"
            )
            request.applymarker(pytest.mark.xfail(reason=reason, strict=False))
