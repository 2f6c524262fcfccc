"""When an operation on stored objects is tried again, for how long, and what is said at the end: one policy for all.

Only what may be better the next time is tried again: a server that is busy or broken, a connection that was refused,
reset or silent, an answer that ended early. What is missing, damaged, forbidden or full fails at once. The clock starts
with the first failure of an operation, so that a large object on a slow line is never given up while it arrives.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from neuroray.storage.faults import ForbiddenError, StoreError, UnreachableError

DEADLINE: Final = "NEURORAY_DEADLINE_S"
STALL: Final = "NEURORAY_STALL_S"

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 8.0
_log = logging.getLogger(__name__)

# The libraries tell most faults in words alone: obstore and deltalake in those of Rust's object_store and reqwest, s3fs
# in those of botocore and aiohttp, servers in those of S3. What is listed first decides.
_CHECK_CREDENTIALS: Final = (
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, the machine's role) and their rights"
)
_REFUSALS: Final = {
    r"ExpiredToken|TokenRefreshRequired": "the credentials have run out: renew them, then run the same command again",
    r"RequestTimeTooSkewed|RequestExpired": "set this machine's clock: the server's is too far from it",
    r"InvalidToken|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied": _CHECK_CREDENTIALS,
    r"AuthorizationHeaderMalformed|status code: 40[13]\b": _CHECK_CREDENTIALS,
}
_FINAL_WORDS: Final = re.compile(
    "|".join(_REFUSALS) + r"|NoSuchBucket|NoSuchKey|NotImplemented|status code: 50[15]|"
    r"No space left|Disk quota exceeded|invalid peer certificate|builder error"
)
_TRANSIENT_WORDS: Final = re.compile(
    r"status code: (?:5\d\d|408|429)|\b50[0234]\b|"
    r"SlowDown|reduce your request rate|ServiceUnavailable|InternalError|InternalServerError|OperationAborted|"
    r"RequestTimeout|RequestLimitExceeded|TooManyRequests|Throttl|BadDigest|IncompleteBody|"
    r"error sending request|(?:request or response|error reading a|decoding response) body|"
    r"connection (?:was |is )?(?:reset|refused|closed|aborted|broken|error)|reset by peer|broken pipe|"
    r"timed? ?out|timeout|IncompleteRead|incomplete (?:read|message|body)|end of file before message|"
    r"unexpected (?:eof|end of file)|ended prematurely|payload is not completed|server disconnected|"
    r"could not connect|cannot connect|dns error|name resolution|temporarily unavailable",
    re.IGNORECASE,
)
_TRANSIENT_ERRNOS: Final = frozenset(
    (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
)
_TRANSIENT_TYPES: Final = (ConnectionError, TimeoutError, http.client.IncompleteRead)
_ARROW: Final = re.compile(r"\s*(?:\x1b\[\d+m)*↳(?:\x1b\[\d+m)*\s*")
_NOISE: Final = re.compile(r"(?:Generic \w+ error: )|(?:Error performing \w+ \S+ in \S+(?:, after [^-]*)? - )")
_STATUS: Final = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE: Final = re.compile(r"<Code>([^<]{1,80})")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,160})")
_SYSTEM: Final = re.compile(r'message: "([^"]{1,80})"|\bTimedOut\b|\bIncompleteMessage\b')
_SECRET_SETTINGS: Final = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SECRET_WORDS: Final = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"<]+|(AWSAccessKeyId>)[^<]*|(\bAKIA|\bASIA)[A-Z0-9]{12,}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to go on.

    Attributes:
        deadline_s: How long after its first failure an operation is tried again; 0: never.
        stall_s: How long a connection may be silent before it counts as failed.
    """

    deadline_s: float
    stall_s: float


def read_policy() -> RetryPolicy:
    """The policy that the environment sets: `NEURORAY_DEADLINE_S` (120) and `NEURORAY_STALL_S` (30).

    Raises:
        StoreError: one of them is no number of seconds.
    """
    return RetryPolicy(
        deadline_s=_read_seconds(DEADLINE, 120.0, least=0.0), stall_s=_read_seconds(STALL, 30.0, least=0.01)
    )


class Attempts:
    """The tries of one operation: counts them, and says after each failure how long to wait, or that it is over.

    Args:
        what: The operation and its object, as the error begins: "cannot read KEY in s3://bucket/prefix".
    """

    def __init__(self, what: str) -> None:
        self.num_failed = 0
        self._what = what
        self._first_failure_s = 0.0

    def pause_s(self, error: Exception) -> float:
        """How long to wait before the next try; grows, and is drawn, so that many workers do not come back at once.

        Raises:
            UnreachableError: the deadline has passed.
        """
        now_s, policy = time.monotonic(), read_policy()
        self.num_failed += 1
        if self.num_failed == 1:
            self._first_failure_s = now_s
        spent_s = now_s - self._first_failure_s
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self.num_failed - 1, 10)) * random.uniform(0.5, 1.5)
        if spent_s + pause_s > policy.deadline_s:
            raise self._give_up(error, spent_s) from shown(error)
        if self.num_failed == 1:
            _log.warning("%s: %s; trying again for up to %g s", self._what, describe(error), policy.deadline_s)
        return pause_s

    def _give_up(self, error: Exception, spent_s: float) -> UnreachableError:
        times = "once" if self.num_failed == 1 else f"{self.num_failed} times"
        return UnreachableError(
            f"{self._what}: tried {times} in {spent_s:.1f} s",
            given=describe(error),
            fix=f"check the network and the store's server ({DEADLINE} sets how long to try)",
        )


def keep_trying[T](attempt: Callable[[], T], *, what: str) -> T:
    """Calls `attempt` until it succeeds, fails for good, or the deadline passes.

    Raises:
        UnreachableError: it failed until the deadline; says what, how often, how long, and the last cause.
    """
    attempts = Attempts(what)
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            pause_s = attempts.pause_s(error)
        time.sleep(pause_s)


async def keep_trying_async[T](attempt: Callable[[], Awaitable[T]], *, what: str) -> T:
    """As `keep_trying`, without holding up the event loop."""
    attempts = Attempts(what)
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            pause_s = attempts.pause_s(error)
        await asyncio.sleep(pause_s)


def is_transient(error: BaseException) -> bool:
    """Whether the next try may be better; what was given up already is not."""
    for link in causes(error):
        if isinstance(link, StoreError | FileNotFoundError | FileExistsError | PermissionError | MemoryError):
            return False
        if isinstance(link, _TRANSIENT_TYPES) or (isinstance(link, OSError) and link.errno in _TRANSIENT_ERRNOS):
            return True
        if _FINAL_WORDS.search(_plain(link)):
            return False
        # Of its first lines, for the rest is what the library knows of itself, its timeouts among it.
        if _TRANSIENT_WORDS.search(_first_lines(link)):
            return True
    return False


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and what it gathers."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from causes(part)
        error = error.__cause__


def find_told(error: BaseException) -> StoreError | None:
    """Among the causes, that a server could not be reached or refused; None where the objects may be at fault."""
    return next((link for link in causes(error) if isinstance(link, UnreachableError | ForbiddenError)), None)


def find_refusal(error: BaseException) -> str | None:
    """What to do when a server refused for who asks, or when; None for any other error."""
    for words, fix in _REFUSALS.items():
        if re.search(words, _plain(error)):
            return fix
    return _CHECK_CREDENTIALS if isinstance(error, PermissionError) else None


def describe(error: BaseException) -> str:
    """An error in one line: what the server or the system said, without anything secret."""
    words, text = _NOISE.sub("", _first_lines(error)), _plain(error)
    status, code, message = (pattern.search(text) for pattern in (_STATUS, _CODE, _MESSAGE))
    if status:
        words = ", ".join(match[1] for match in (status, code, message) if match)
    elif system := _SYSTEM.search(text):
        words = f"{words} ({system[1] or system[0]})"
    return redact(f"{type(error).__name__}: {words}")[:300]


def shown(error: BaseException) -> BaseException | None:
    """The error, to raise another from it; None where its text holds a secret, which every traceback would show."""
    text = str(error)
    return error if redact(text) == text else None


def redact(text: str) -> str:
    """The text with credentials of the environment, keys and signatures taken out."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_SETTINGS.search(name):
            text = text.replace(value, "***")
    return _SECRET_WORDS.sub(lambda match: f"{match[1] or match[2] or match[3]}***", text)


def _first_lines(error: BaseException) -> str:
    # Rust's libraries put what they know of themselves below an empty line.
    return " ".join(_plain(error).partition("\n\n")[0].split())


def _plain(error: BaseException) -> str:
    """The text as others word it: deltalake joins what it was told by coloured arrows."""
    return _ARROW.sub(": ", str(error))


def _read_seconds(name: str, default_s: float, *, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default_s
    except ValueError:
        seconds = -1.0
    if not least <= seconds < 1e9:
        raise StoreError(f"{name} is no number of seconds", given=repr(text), expected=f"{least:g} or more")
    return seconds
