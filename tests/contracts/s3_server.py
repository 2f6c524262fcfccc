"""An S3 server for tests: moto over real HTTP on loopback."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ACCESS_KEY, SECRET_KEY = "neuroray-tests", "not-a-secret"
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Any]


@contextmanager
def serve_s3() -> Iterator[str]:
    """Serves an empty S3 until the block ends; yields `http://127.0.0.1:port`."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _AtomicConditionalWrites(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def create_bucket(endpoint_url: str, name: str) -> None:
    """Makes a bucket; plain HTTP will do, for the server checks no signature."""
    request = urllib.request.Request(f"{endpoint_url}/{name}", method="PUT")
    # A proxy set in the environment has no business between two ends of loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10):
        pass


def delete_all(uri: str) -> None:
    """Deletes every object below an address."""
    from neuroray.storage.locations import Location

    place = Location(uri)
    for key, _ in place.list():
        place.delete(key)


class _AtomicConditionalWrites:
    """Lets one conditional write through at a time.

    S3 promises that `If-None-Match` is checked and the object put in one step. Moto checks and puts in two, so that two
    threads could both pass; the promise is restored here rather than hoped for.
    """

    def __init__(self, app: Wsgi) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ:
            with self._lock:
                return self._app(environ, start_response)
        return self._app(environ, start_response)
