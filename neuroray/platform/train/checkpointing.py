"""Checkpoints of a run: sharded state in a folder of its own, complete once its manifest, written last, is there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_model_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from neuroray.platform.train.manifest import CheckpointError, Manifest, Progress
from neuroray.platform.train.optim import WeightAverage
from neuroray.platform.train.parallel import Team
from neuroray.platform.train.recipe import RecipeError
from neuroray.storage.faults import MissingObjectError
from neuroray.storage.locations import Location

_MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


class Checkpoints:
    """The `checkpoints/` folder of a run, as one attempt at it sees it.

    Args:
        location: The folder; local or a bucket.
        team: The ranks that write together.
        attempt: A word that no other start of this run uses; it ends every folder's name, so that what a dead attempt
            left half written is never mixed with ours.
        keep: Newest checkpoints that stay, besides the best.
        identity: What must be the same for a checkpoint to be continued (recipe, catalogue version, features).
    """

    def __init__(self, location: Location, team: Team, *, attempt: str, keep: int, identity: dict[str, Any]) -> None:
        self._location = location
        self._team = team
        self._attempt = attempt
        self._keep = keep
        self._identity = identity
        self._history: list[str] = []

    def name_at(self, step: int) -> str:
        """The folder that this attempt writes after step `step`."""
        return f"step-{step:08d}-{self._attempt}"

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        average: WeightAverage | None = None,
    ) -> str:
        """Writes a checkpoint, called by every rank; returns its name. Older ones are cleared away afterwards.

        Raises:
            CheckpointError: the lead cannot see what another rank wrote.
        """
        name = self.name_at(progress.step)
        folder = self._location.child(name)
        with tempfile.TemporaryDirectory(prefix="neuroray-checkpoint-") as scratch, _quiet_alone():
            # Every rank writes beside itself and then copies, so that local disk and bucket take the same way.
            state = _state(module, optimizer, average)
            save_sharded(state, storage_writer=FileSystemWriter(scratch), no_dist=self._is_alone)
            written = [_copy_out(path, folder) for path in sorted(Path(scratch).iterdir())]
        files = tuple(entry for entries in self._team.gather(written) for entry in entries)
        if self._team.is_lead:
            self._require_all_visible(folder, files)
            manifest = Manifest(
                name=name, progress=progress, identity=self._identity, world_size=self._team.world_size, files=files
            )
            folder.write_bytes(_MANIFEST, manifest.to_bytes())
            self._history.append(name)
            self._clear_away(progress)
        # Nobody goes on before the checkpoint exists: an error of the lead must not leave others a step ahead.
        return self._team.broadcast(name)

    def restore(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, *, average: WeightAverage | None = None
    ) -> Progress:
        """Loads the newest usable checkpoint, called by every rank; without one, a fresh `Progress`.

        Incomplete and damaged ones are skipped, each with a line in the log. The number of ranks may differ from the
        one that wrote it.

        Raises:
            RecipeError: a checkpoint belongs to another recipe, catalogue version or features.
        """
        with tempfile.TemporaryDirectory(prefix="neuroray-restore-") as scratch:
            # Only the lead looks; what it finds wrong it must tell the others, who would wait for ever.
            found = self._team.broadcast(self._look(Path(scratch)) if self._team.is_lead else None)
            if isinstance(found, RecipeError):
                raise found
            if found is None:
                return Progress()
            self._history = [found.name]
            if not self._team.is_lead:
                _copy_in(self._location.child(found.name), found, Path(scratch))
            state = _state(module, optimizer, average)  # the average's own tensors are filled in place
            with _quiet_alone():
                load_sharded(state, storage_reader=FileSystemReader(scratch), no_dist=self._is_alone)
            set_state_dict(module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return found.progress

    @property
    def _is_alone(self) -> bool:
        return not self._team.is_grouped

    def _look(self, scratch: Path) -> Manifest | RecipeError | None:
        try:
            return self._newest_usable(scratch)
        except RecipeError as fault:
            return fault

    def _newest_usable(self, scratch: Path) -> Manifest | None:
        """The newest checkpoint that is whole, with the best one it names; its files are left in `scratch`."""
        for name in reversed(_folders(self._location)):
            try:
                manifest = read_manifest(self._location, name)
                self._require_same_run(manifest)
                best = manifest.progress.best_checkpoint
                if best is not None and best != name:
                    verify_checkpoint(self._location, best)
                _copy_in(self._location.child(name), manifest, scratch)
            except CheckpointError as fault:
                logger.warning("checkpoint %s is skipped: %s", name, fault)
                continue
            return manifest
        return None

    def _require_same_run(self, manifest: Manifest) -> None:
        different = [name for name, value in self._identity.items() if manifest.identity.get(name) != value]
        if different:
            raise RecipeError(
                f"checkpoint {manifest.name} cannot be continued: it was made with another {', '.join(different)}",
                fix="choose another --out, or give the same recipe, store and version again",
            )

    def _require_all_visible(self, folder: Location, files: tuple[dict[str, Any], ...]) -> None:
        sizes = dict(folder.list())
        unseen = [entry["name"] for entry in files if sizes.get(entry["name"]) != entry["size_bytes"]]
        if unseen:
            raise CheckpointError(
                f"the lead does not see what another worker wrote to {folder.uri}",
                given=f"{len(unseen)} of {len(files)} files missing",
                fix="workers on several machines need a run folder they share: a bucket (s3://...) or a network drive",
            )

    def _clear_away(self, progress: Progress) -> None:
        """Keeps this attempt's newest and the best; all else is of dead attempts, damaged, or old."""
        self._history = self._history[-self._keep :]
        stay = {*self._history, progress.best_checkpoint}
        for name in _folders(self._location):
            if name not in stay:
                delete_checkpoint(self._location, name)


def read_manifest(location: Location, name: str) -> Manifest:
    """The manifest of one checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is not whole.
    """
    try:
        manifest = Manifest.from_bytes(location.child(name).read_bytes(_MANIFEST))
    except MissingObjectError as error:
        raise CheckpointError("it has no manifest: the run ended while it was written") from error
    if manifest.name != name:
        raise CheckpointError("the manifest belongs to another folder", given=manifest.name, expected=name)
    return manifest


def load_model(location: Location, name: str, module: nn.Module, *, averaged: bool = False) -> Manifest:
    """Loads the weights of a checkpoint, or their average, into a module that is not sharded, whoever wrote them.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    manifest = read_manifest(location, name)
    with tempfile.TemporaryDirectory(prefix="neuroray-load-") as scratch, _quiet_alone():
        _copy_in(location.child(name), manifest, Path(scratch))
        state: dict[str, Any] = {"model": module.state_dict()}
        if averaged:
            trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            state["average"] = {name: value.clone() for name, value in state["model"].items() if name in trained}
        load_sharded(state, storage_reader=FileSystemReader(scratch), no_dist=True)
    set_model_state_dict(module, state["model"] | state.get("average", {}))
    return manifest


def verify_checkpoint(location: Location, name: str) -> Manifest:
    """Reads every byte of a checkpoint and checks it.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    manifest = read_manifest(location, name)
    for entry in manifest.files:
        try:
            found = location.child(name).digest(entry["name"])
        except MissingObjectError as error:
            raise CheckpointError(f"{entry['name']} is missing") from error
        if found != (entry["size_bytes"], entry["sha256"]):
            raise CheckpointError(f"{entry['name']} is damaged")
    return manifest


def delete_checkpoint(location: Location, name: str) -> None:
    """Removes a checkpoint, its manifest first, so that half of one never looks whole."""
    folder = location.child(name)
    keys = [key for key, _ in folder.list()]
    for key in sorted(keys, key=lambda key: key != _MANIFEST):
        folder.delete(key)
    if folder.is_local:
        shutil.rmtree(folder.path, ignore_errors=True)  # a bucket has no empty folders, a disk has


def _folders(location: Location) -> list[str]:
    """Names of all checkpoint folders, complete or not, oldest step first."""
    return sorted(name for name in location.names() if name.startswith("step-"))


def _state(module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> dict[str, Any]:
    model, optimizer_state = get_state_dict(module, optimizer)
    averaged = {} if average is None else {"average": average.weights}
    return {"model": model, "optimizer": optimizer_state, **averaged}


def _copy_out(path: Path, folder: Location) -> dict[str, Any]:
    data = path.read_bytes()
    key = path.name.removeprefix(".")  # torch calls one file `.metadata`; hidden files are no keys of a location
    folder.write_bytes(key, data)
    return {"name": key, "file": path.name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _copy_in(folder: Location, manifest: Manifest, scratch: Path) -> None:
    for entry in manifest.files:
        try:
            data = folder.read_bytes(entry["name"])
        except MissingObjectError as error:
            raise CheckpointError(f"{entry['name']} is missing") from error
        if len(data) != entry["size_bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{entry['name']} is damaged")
        (scratch / entry["file"]).write_bytes(data)


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """torch warns on every save and load outside a process group, which is how a run in process works."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
