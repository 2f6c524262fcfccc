"""An HTTP proxy on loopback that adds latency and makes the faults of object storage at chosen requests.

It stands between a client and a server and passes bytes on as they are, the `Host` header too, so that signatures stay
right. It needs the standard library alone:

    with FaultProxy(endpoint_url, latency_s=0.02) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url

and a process of its own, which takes no time from the one that is measured, is had with
`python tests/contracts/fault_proxy.py http://127.0.0.1:9000 --latency-s 0.02` (prints its address, runs until stdin
ends).
"""

from __future__ import annotations

import argparse
import re
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal, NoReturn
from urllib.parse import urlsplit

Fault = Literal[
    "slow down",  # 503, the request does nothing
    "internal error",  # 500, the request does nothing
    "expired token",  # 400, as S3 words it
    "clock skew",  # 403, the request's time is too far from the server's
    "access denied",  # 403
    "invalid key",  # 403, an access key that the server does not know
    "reset",  # the connection is reset before the server has heard of the request
    "reset after",  # the server does what it was asked, and the answer is lost
    "truncate",  # half the promised body, then the connection is closed
    "shorten",  # half the body, and a Content-Length that says so: HTTP sees nothing wrong
    "lengthen",  # the whole body, and a Content-Length that promises more
    "flip",  # one bit of the body is another
    "stall",  # nothing is answered
    "stall in body",  # half the body, then nothing
]

_REFUSALS: Final[dict[str, tuple[int, str, str]]] = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "internal error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired token": (400, "ExpiredToken", "The provided token has expired."),
    "clock skew": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the server's is too large.",
    ),
    "access denied": (403, "AccessDenied", "Access Denied"),
    "invalid key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
}
_STEP_BYTES: Final = 2**20
_MAX_HEAD_BYTES: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for: `path` with its query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def access_key(self) -> str:
        """The id of the key that it was signed with; empty for an unsigned one."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return found.group(1) if found else ""


@dataclass(slots=True, kw_only=True)
class Rule:
    """Which requests meet a fault.

    Attributes:
        fault: What happens to them.
        method: Regular expression that the whole method matches.
        path: Regular expression found in the path and query.
        when: Any other condition.
        skip: How many matching requests pass before the first that does not.
        times: How many then meet the fault; all when None.
        met: How many have.
    """

    fault: Fault
    method: str = ".*"
    path: str = ""
    when: Callable[[Request], bool] = lambda request: True
    skip: int = 0
    times: int | None = None
    met: int = 0

    def takes(self, request: Request) -> bool:
        """Whether this request meets the fault; counts."""
        if not (re.fullmatch(self.method, request.method) and re.search(self.path, request.path)):
            return False
        if not self.when(request) or self.met == self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.met += 1
        return True


class FaultProxy:
    """A proxy in front of an HTTP server, on a free port of loopback; a context manager.

    Args:
        target_url: The server, `http://host:port`.
        latency_s: Added to every request, to each on its own.
    """

    def __init__(self, target_url: str, latency_s: float = 0.0) -> None:
        parts = urlsplit(target_url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.latency_s = latency_s
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, fault: Fault, **conditions: Any) -> Rule:
        """Adds a rule (see `Rule`) and gives it; the first that takes a request decides."""
        rule = Rule(fault=fault, **conditions)
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Drops all rules, and forgets the requests."""
        with self._lock:
            self.rules.clear()
            self.requests.clear()

    def judge(self, request: Request) -> Fault | None:
        """Notes a request and tells what shall happen to it."""
        with self._lock:
            self.requests.append(request)
            return next((rule.fault for rule in self.rules if rule.takes(request)), None)

    def hold(self, connection: socket.socket) -> None:
        """Remembers an open connection, to close it at the end."""
        with self._lock:
            self._sockets.add(connection)

    def let_go(self, connection: socket.socket) -> None:
        """Forgets a connection."""
        with self._lock:
            self._sockets.discard(connection)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _LostError(Exception):
    """The connection has to be closed now."""


class _ResetError(Exception):
    """The connection has to be reset now."""


class _Connection(socketserver.BaseRequestHandler):
    """One client's connection, and one to the server for it."""

    server: _Server
    request: socket.socket

    def handle(self) -> None:
        proxy = self.server.proxy
        self._upstream: socket.socket | None = None
        self._answers: BinaryIO | None = None
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        proxy.hold(self.request)
        asks = self.request.makefile("rb", _STEP_BYTES)
        is_reset = False
        try:
            with suppress(_LostError, OSError):
                while self._serve_one(proxy, asks):
                    pass
        except _ResetError:
            is_reset = True
        finally:
            self._hang_up()
            asks.close()
            proxy.let_go(self.request)
            if is_reset:
                self.request.close()

    def _serve_one(self, proxy: FaultProxy, asks: BinaryIO) -> bool:
        """One request and its answer; whether the connection may go on."""
        head = _read_head(asks)
        if not head:
            return False
        first, headers = _parse_head(head)
        method, path = first.split(" ")[:2]
        request = Request(method=method, path=path, headers=headers)
        if headers.get("expect", "").lower() == "100-continue":
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head)
        body = b"".join(_read_body(asks, headers))
        fault = proxy.judge(request)
        if proxy.latency_s and proxy.stopping.wait(proxy.latency_s):
            return False
        if fault in _REFUSALS:
            self._refuse(request, *_REFUSALS[fault])
            return True
        if fault == "reset":
            self._reset()
        if fault == "stall":
            proxy.stopping.wait()
            return False
        return self._pass_on(proxy, method, head + body, fault)

    def _pass_on(self, proxy: FaultProxy, method: str, message: bytes, fault: Fault | None) -> bool:
        head, answers = self._ask(proxy, message)
        if fault == "reset after":
            self._reset()
        status, headers = _parse_head(head)
        has_body = method != "HEAD" and status.split(" ")[1] not in ("204", "304")
        is_open = status.startswith("HTTP/1.1") and headers.get("connection", "").lower() != "close"
        if fault is not None and has_body:
            return self._spoil(proxy, fault, head, b"".join(_read_body(answers, headers, until_close=not is_open)))
        self.request.sendall(head)
        if has_body:
            raw = _read_body(answers, headers, until_close=not is_open)
            for step in raw:
                self.request.sendall(step)
        if not is_open:
            self._hang_up()
        return is_open

    def _spoil(self, proxy: FaultProxy, fault: Fault, head: bytes, body: bytes) -> bool:
        half = len(body) // 2
        if fault == "shorten":
            self.request.sendall(_with_length(head, half) + body[:half])
        elif fault == "lengthen":
            self.request.sendall(_with_length(head, len(body) + 10) + body)
        elif fault == "flip":
            self.request.sendall(
                head + body[:half] + bytes(byte ^ 16 for byte in body[half : half + 1]) + body[half + 1 :]
            )
        else:
            self.request.sendall(head + body[:half])
            if fault == "stall in body":
                proxy.stopping.wait()
        return False

    def _ask(self, proxy: FaultProxy, message: bytes) -> tuple[bytes, BinaryIO]:
        """Sends to the server, again on a new connection when an idle one was closed meanwhile; the answer's head."""
        for _ in range(2):
            is_new = self._answers is None
            if self._answers is None:
                self._upstream = socket.create_connection(proxy.target, timeout=300)
                self._upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                proxy.hold(self._upstream)
                self._answers = self._upstream.makefile("rb", _STEP_BYTES)
            head = b""
            with suppress(OSError):
                assert self._upstream is not None
                self._upstream.sendall(message)
                head = _read_head(self._answers)
            if head:
                return head, self._answers
            self._hang_up()
            if is_new:
                break
        raise _LostError

    def _refuse(self, request: Request, status: int, code: str, message: str) -> None:
        # As S3 does, it says whose key it refuses.
        key = f"<AWSAccessKeyId>{request.access_key}</AWSAccessKeyId>" if code == "InvalidAccessKeyId" else ""
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{key}</Error>"
        body = text.encode()
        head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request.sendall(head.encode() + (b"" if request.method == "HEAD" else body))

    def _reset(self) -> NoReturn:
        # To close with nothing to linger for sends RST; the server's own way to close would send FIN first.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _ResetError

    def _hang_up(self) -> None:
        for end in (self._answers, self._upstream):
            if end is not None:
                with suppress(OSError):
                    end.close()
        if self._upstream is not None:
            self.server.proxy.let_go(self._upstream)
        self._upstream = self._answers = None


def _read_head(source: BinaryIO) -> bytes:
    """The first line and the headers, with the empty line; empty at the end of the connection."""
    lines = []
    while line := source.readline(_MAX_HEAD_BYTES):
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)
    return b""


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _read_body(source: BinaryIO, headers: dict[str, str], *, until_close: bool = False) -> Any:
    """The body's bytes as they are on the wire, in steps."""
    if "chunked" in headers.get("transfer-encoding", ""):
        yield from _read_chunked(source)
        return
    left = int(headers.get("content-length", -1))
    if left < 0 and not until_close:
        return
    while left and (step := source.read1(_STEP_BYTES if left < 0 else min(left, _STEP_BYTES))):  # type: ignore[attr-defined]
        left -= len(step) if left > 0 else 0
        yield step
    if left > 0:
        raise _LostError


def _read_chunked(source: BinaryIO) -> Any:
    while line := source.readline():
        yield line
        size_bytes = int(line.partition(b";")[0], 16)
        if not size_bytes:
            yield _read_head(source)  # trailers
            return
        yield source.read(size_bytes + 2)


def _with_length(head: bytes, size_bytes: int) -> bytes:
    return re.sub(rb"(?i)(\r\ncontent-length:)[^\r]*", rb"\g<1> %d" % size_bytes, head)


def main() -> None:
    """Serves until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target_url")
    parser.add_argument("--latency-s", type=float, default=0.0)
    given = parser.parse_args()
    with FaultProxy(given.target_url, given.latency_s) as proxy:
        print(proxy.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
