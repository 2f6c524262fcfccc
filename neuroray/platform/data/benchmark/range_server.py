"""A server that answers as S3 does to those who read: objects from a folder, whole or in ranges, after a latency.

moto reads an object as a whole for every range of it, so that a shard of a few hundred megabytes takes a minute; what a
layout costs in a bucket could not be seen behind that. Here a range costs its latency and its bytes.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_STEP_BYTES = 2**20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as S3's do
    folder: Path
    latency_s: float

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_body: bool) -> None:
        time.sleep(self.latency_s)
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if ".." in path.parts or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = self.headers.get("Range")
        start, stop = _parse_range(wanted, size)
        self.send_response(200 if wanted is None else 206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        if wanted is not None:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if not with_body:
            return
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(_STEP_BYTES, stop - start))
                self.wfile.write(piece)
                start += len(piece)


def serve(folder: Path, latency_s: float) -> ThreadingHTTPServer:
    """Starts it on a free port of loopback; `server_port` says which, `shutdown` ends it."""
    handler = type("Handler", (_Handler,), {"folder": folder, "latency_s": latency_s})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Serves until stdin ends; prints the address first."""
    parser = argparse.ArgumentParser(prog="python -m neuroray.platform.data.benchmark.range_server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-s", type=float, default=0.0)
    options = parser.parse_args()
    server = serve(options.folder, options.latency_s)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    server.shutdown()


def _parse_range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the end (exclusive) of a single range; the whole object without one."""
    if header is None or not header.startswith("bytes="):
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


if __name__ == "__main__":
    main()
