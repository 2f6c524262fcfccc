"""What is tried again and what is not, by the words of every library that tells of it; what is said at the end."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
from collections.abc import Callable

import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError

from neuroray.storage import retries
from neuroray.storage.faults import DamagedObjectError, StoreError, UnreachableError
from neuroray.storage.retries import describe, find_refusal, is_transient, keep_trying, keep_trying_async, redact

SLOW_DOWN = GenericError(
    "Generic S3 error: Error performing GET http://127.0.0.1:9/b/k in 841.767µs - Server returned non-2xx status code: "
    "503 Service Unavailable: <?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request "
    "rate.</Message></Error>\n\nDebug source:\nGeneric { timeout: 10s }"
)
EXPIRED = GenericError(
    "Generic S3 error: Error performing GET http://127.0.0.1:9/b/k in 230µs - Server returned non-2xx status code: "
    "400 Bad Request: <Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
DELTA = OSError(
    "Kernel error -> Generic S3 error \x1b[31m↳\x1b[0m Server returned non-2xx status code \x1b[31m↳\x1b[0m "
    "503 Service Unavailable \x1b[31m↳\x1b[0m <Error><Code>SlowDown</Code><Message>Please reduce your request rate."
    "</Message></Error>"
)
RESET = GenericError(
    "Generic S3 error: Error performing GET http://127.0.0.1:9/b/k in 3ms - HTTP error: error sending request\n\n"
    'Debug source:\nGeneric { source: Os { code: 104, message: "Connection reset by peer" } }'
)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which a clock of the test's own counts in place of waiting."""
    asked: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", asked.append)
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(asked))
    return asked


def fail_times(count: int, error: Exception) -> Callable[[], str]:
    left = iter([error] * count)

    def attempt() -> str:
        for failure in left:
            raise failure
        return "read"

    return attempt


@pytest.mark.parametrize(
    "error",
    [
        SLOW_DOWN,
        RESET,
        DELTA,
        GenericError("Generic S3 error: HTTP error: request or response body error"),
        GenericError("Server returned non-2xx status code: 400 Bad Request: <Code>RequestTimeout</Code>"),
        GenericError("Server returned non-2xx status code: 429 Too Many Requests"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError(),
        http.client.IncompleteRead(b"12", 4),
        OSError(116, "Stale file handle"),
        OSError("Generic S3 error: Error after 3 retries: HTTP status server error (500 Internal Server Error)"),
        # s3fs: botocore's words, and aiohttp's
        OSError("[Errno 16] Please reduce your request rate."),
        OSError("An error occurred (SlowDown) when calling the GetObject operation"),
        OSError('Could not connect to the endpoint URL: "http://127.0.0.1:9/"'),
        OSError("Response payload is not completed: <ContentLengthError: 400>"),
        OSError("Read timeout on endpoint URL"),
        ExceptionGroup("reads", [ValueError("other"), SLOW_DOWN]),
    ],
)
def test_what_may_be_better_next_time_is_tried_again(error: Exception, pauses: list[float]):
    assert is_transient(error)
    assert keep_trying(fail_times(3, error), what="cannot read k") == "read"
    assert len(pauses) == 3


@pytest.mark.parametrize(
    "error",
    [
        EXPIRED,
        NotFoundError("Object at location k not found: Server returned non-2xx status code: 404 Not Found"),
        PermissionDeniedError("status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>"),
        GenericError("status code: 501 Not Implemented: <Code>NotImplemented</Code>"),
        GenericError("Generic LocalFileSystem error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        GenericError("Generic S3 error: HTTP error: builder error\n\nDebug: timeout: 10s, status code: 503"),
        DamagedObjectError("k is damaged"),
        FileNotFoundError("k"),
        PermissionError("k"),
        ValueError("shape"),
    ],
)
def test_what_would_be_no_better_fails_at_once(error: Exception, pauses: list[float]):
    with pytest.raises(type(error)) as caught:
        keep_trying(fail_times(1, error), what="cannot read k")
    assert caught.value is error
    assert pauses == []


def test_an_error_raised_from_a_broken_connection_is_one(pauses: list[float]):
    error = ValueError("no answer")
    error.__cause__ = RESET
    assert keep_trying(fail_times(1, error), what="cannot read k") == "read"


def test_what_was_given_up_below_is_not_tried_again_above(pauses: list[float]):
    tries = []

    def attempt() -> None:
        tries.append(1)
        keep_trying(fail_times(10**6, RESET), what="cannot read k")

    with pytest.raises(UnreachableError, match="cannot read k"):
        keep_trying(attempt, what="cannot read the scan")
    assert len(tries) == 1


def test_pauses_grow_and_are_drawn(pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "1000")
    keep_trying(fail_times(12, RESET), what="cannot read k")
    for number, pause_s in enumerate(pauses):
        middle_s = min(8.0, 0.2 * 2**number)
        assert 0.5 * middle_s <= pause_s <= 1.5 * middle_s
    assert len({pause_s / min(8.0, 0.2 * 2**number) for number, pause_s in enumerate(pauses)}) == 12


def test_the_deadline_ends_it_and_the_error_says_all(pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "20")
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise SLOW_DOWN

    with pytest.raises(UnreachableError) as caught:
        keep_trying(attempt, what="cannot read c/0 in s3://bucket")
    assert 0 < sum(pauses) <= 20
    assert len(tried) == len(pauses) + 1 > 4
    assert caught.value.fault == f"cannot read c/0 in s3://bucket: tried {len(tried)} times in {sum(pauses):.1f} s"
    assert caught.value.given == "GenericError: 503 Service Unavailable, SlowDown, Please reduce your request rate."
    assert "NEURORAY_DEADLINE_S" in str(caught.value.fix)
    assert caught.value.__cause__ is SLOW_DOWN


def test_no_time_to_try_again_is_one_try(pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "0")
    with pytest.raises(UnreachableError, match="tried once"):
        keep_trying(fail_times(1, RESET), what="cannot read k")
    assert pauses == []


def test_in_an_event_loop_it_is_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 1e-6)
    attempt = fail_times(3, RESET)

    async def ask() -> str:
        return attempt()

    assert asyncio.run(keep_trying_async(ask, what="cannot read k")) == "read"
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "0")
    attempt = fail_times(3, SLOW_DOWN)
    with pytest.raises(UnreachableError, match="cannot read k: tried once"):
        asyncio.run(keep_trying_async(ask, what="cannot read k"))


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_deadline_that_is_no_number_is_told(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", value)
    with pytest.raises(StoreError, match=r"NEURORAY_DEADLINE_S is no number of seconds; given .*; expected 0 or more"):
        retries.read_policy()


def test_the_deadline_is_two_minutes_where_none_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NEURORAY_DEADLINE_S")
    monkeypatch.delenv("NEURORAY_STALL_S")
    assert (retries.read_policy().deadline_s, retries.read_policy().stall_s) == (120, 30)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (EXPIRED, "have run out"),
        (PermissionDeniedError("403 Forbidden: <Code>RequestTimeTooSkewed</Code>"), "clock"),
        (PermissionDeniedError("403 Forbidden: <Code>AccessDenied</Code>"), "rights"),
        (OSError("An error occurred (InvalidAccessKeyId) when calling ListObjectsV2"), "AWS_ACCESS_KEY_ID"),
        (SLOW_DOWN, None),
        (FileNotFoundError("k"), None),
    ],
)
def test_a_refusal_says_what_to_do(error: Exception, fix: str | None):
    found = find_refusal(error)
    assert found is None if fix is None else fix in str(found)


def test_an_error_is_told_in_a_line_of_what_counts():
    assert describe(RESET) == "GenericError: HTTP error: error sending request (Connection reset by peer)"
    assert describe(DELTA) == "OSError: 503 Service Unavailable, SlowDown, Please reduce your request rate."
    assert describe(EXPIRED) == "GenericError: 400 Bad Request, ExpiredToken, The provided token has expired."


def test_nothing_secret_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pauses: list[float]):
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+planted",
        "AWS_SESSION_TOKEN": "planted-session-token",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "MY_STORE_PASSWORD": "planted-password",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    error = GenericError(
        "status code: 503 of http://h/b?X-Amz-Signature=0badcafe&X-Amz-Credential=ASIAIOSFODNN7OTHER1/x: "
        + " ".join(f"<AWSAccessKeyId>{value}</AWSAccessKeyId>" for value in secrets.values())
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreachableError) as caught:
        keep_trying(fail_times(10**6, error), what="cannot read k")
    told = caplog.text + str(caught.value) + redact(str(error))
    assert "cannot read k" in caplog.text
    for secret in (*secrets.values(), "0badcafe", "ASIAIOSFODNN7OTHER1"):
        assert secret not in told
    assert os.environ["AWS_SESSION_TOKEN"] == "planted-session-token"
