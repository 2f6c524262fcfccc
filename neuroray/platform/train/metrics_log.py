"""The log of a run: one JSON line per step in `metrics.jsonl`, the same numbers as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neuroray.storage.faults import MissingObjectError
from neuroray.storage.locations import Location

METRICS_FILE = "metrics.jsonl"
_TENSORBOARD = "tensorboard"
_COORDINATES = ("step", "epoch", "split")


class MetricsLog:
    """Appends rows; a resumed run's log holds every step once.

    Opening it drops what an earlier attempt logged after `after_step`, a torn last line included: these steps are
    done again. On a local folder each row is on disk before the next step; in a bucket, where nothing can be appended
    to, rows are sent by `flush`, which the loop calls before each checkpoint, so that no row before a checkpoint can
    be lost.

    Args:
        run: The run's folder.
        after_step: The step from which this attempt goes on.
    """

    def __init__(self, run: Location, *, after_step: int) -> None:
        # Imported here: TensorBoard costs a second that only the one rank that logs has to pay.
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._lines = [json.dumps(row) for row in read_metrics(run) if row["step"] <= after_step]
        self._scratch = None if run.is_local else tempfile.TemporaryDirectory(prefix="neuroray-tensorboard-")
        self._events = Path(run.path, _TENSORBOARD) if self._scratch is None else Path(self._scratch.name)
        self._writer = SummaryWriter(str(self._events), purge_step=after_step + 1 if after_step else None)
        self._rewrite()

    def append(self, *, step: int, epoch: int, split: str, **values: float) -> None:
        """Logs one row: where it stands, and the numbers by name."""
        line = json.dumps({"step": step, "epoch": epoch, "split": split, **values})
        if self._run.is_local:
            with Path(self._run.path, METRICS_FILE).open("a") as file:
                print(line, file=file)
        else:
            self._lines.append(line)
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Everything logged so far is where it belongs when this returns."""
        self._writer.flush()
        if not self._run.is_local:
            self._rewrite()
            for path in self._events.iterdir():
                self._run.child(_TENSORBOARD).write_bytes(path.name, path.read_bytes())

    def close(self) -> None:
        """Flushes and ends it."""
        self.flush()
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rewrite(self) -> None:
        self._run.write_bytes(METRICS_FILE, "".join(f"{line}\n" for line in self._lines).encode())


def read_metrics(run: Location) -> list[dict[str, Any]]:
    """All rows of a run's log in order; none where there is no log. A torn last line is left out."""
    return list(_parse_rows(run))


def curve(rows: list[dict[str, Any]], split: str, name: str) -> dict[int, float]:
    """One number over the steps of one split."""
    return {row["step"]: row[name] for row in rows if row["split"] == split and name in row}


def _parse_rows(run: Location) -> Iterator[dict[str, Any]]:
    try:
        text = run.read_bytes(METRICS_FILE).decode()
    except MissingObjectError:
        return
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if all(name in row for name in _COORDINATES):
                yield row
