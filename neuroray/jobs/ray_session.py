"""A connection to Ray for one job: the cluster that the environment names, else a small one of this machine's own."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 512 * 2**20
# Lines of Ray's own actors that say nothing to a person: a cleaner that asks the dashboard, of which there is none,
# every second; the ends of streams that we read to their end, and of a server that was told to end; how many processes
# a small machine starts at once.
_CHATTER = "|".join(
    [
        "Failed to query Ray Train Controller actor state",
        "PreemptionWatcher",
        "Dataset dataset_.* execution finished",
        "Progress bars disabled",
        "ServeController.graceful_shutdown failed",
        "PYTHON worker processes have been started on node",
    ]
)
# A busy machine takes its time to start processes; Ray's own limits (30 s for the raylet, 5 s for the HTTP proxy) would
# give up on it, with an error that names neither. The limit for a node to be known, 30 s too, cannot be set.
_PATIENCE = {"RAY_raylet_start_wait_time_s": "180", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
# Ray would free what was read and used only once a second: up to a second's batches beyond what a stream may hold.
_TIDINESS = {"RAY_free_objects_period_milliseconds": "100"}
_TOO_SLOW = "timed out during startup"
_START_ATTEMPTS = 4
_CHATTY_LOGGERS = ("ray.data._internal.execution.streaming_executor", "ray.data._internal.progress")


def _hide_chatter(record: logging.LogRecord) -> bool:
    """Marks a record for Ray Data's log file alone; its console handler leaves out what is marked so."""
    if re.search(_CHATTER, record.getMessage()):
        record.hide = True
    return True


@contextlib.contextmanager
def ensure_ray(*, num_cpus: int = 0) -> Iterator[None]:
    """Connects to Ray for the block.

    - Connected already: nothing is done, also not at the end.
    - `RAY_ADDRESS` is set, as inside `ray job submit`: connects to that cluster.
    - Otherwise: starts a cluster on this machine, without a dashboard, and stops it at the end. A cluster that
      somebody else started here is left alone; `RAY_ADDRESS=auto` joins it.

    A cluster of our own is closed to other users of the machine by a token that lives in the environment of this
    process and its workers only: Ray's own way would write one into the home folder. `RAY_AUTH_MODE`, where it is
    set, is respected. The environment is what it was when the block ends.

    Args:
        num_cpus: Logical CPUs the work reserves; a cluster of our own has at least two more (and never fewer than the
            machine), for the reading tasks beside it. They are bookkeeping: more than the machine has means taking
            turns.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment_as_it_was())
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _CHATTER)  # Ray reads it when it is imported
        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).addFilter(_hide_chatter)  # one that is there already is not added again
        import ray

        if ray.is_initialized():
            yield
            return
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True, logging_level=logging.WARNING)
        else:
            stack.enter_context(_own_token())
            for name, value in (_PATIENCE | _TIDINESS).items():
                os.environ.setdefault(name, value)
            start_local_ray(
                num_cpus=max(os.cpu_count() or 1, num_cpus + 2),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=True,
                logging_level=logging.WARNING,
            )
        stack.callback(ray.shutdown)
        yield


def start_local_ray(**options: Any) -> None:
    """Starts a cluster of this machine's own, again where the machine was too busy to start one in Ray's 30 s.

    Args:
        options: Of `ray.init`.
    """
    import ray

    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(address="local", **options)
        except Exception as error:  # Ray raises no type of its own here
            ray.shutdown()  # what has been started of it
            if _TOO_SLOW not in str(error) or attempt == _START_ATTEMPTS:
                raise
            logger.warning("this machine is too busy to start Ray in 30 s; trying again")
        else:
            return


@contextlib.contextmanager
def _environment_as_it_was() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Lets Ray turn token authentication on, as it would, but with a token that it finds in the environment."""
    if os.environ.get("RAY_AUTH_MODE"):
        yield
        return
    speaker = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = speaker.level
    os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    speaker.setLevel(logging.ERROR)  # it would announce what is wanted here
    try:
        yield
    finally:
        speaker.setLevel(level)


@functools.cache
def _token() -> str:
    """One per process: Ray keeps the first one it has read."""
    return secrets.token_hex(32)
