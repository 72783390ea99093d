"""Checkpoints written beside the training, one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from fmdist.errors import FmdistError
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.group import Group
from fmdist.training.snapshot import Snapshot

logger = logging.getLogger(__name__)


class Writer:
    """Commits snapshots in a thread of its own; leaving it waits for the last.

    A commit that failed raises at the next `submit` or `wait`, so that nothing is ever lost in silence.

    Args:
        store: where checkpoints go.
        beside: false commits at once, and training waits.
        group: the processes that train together.
    """

    def __init__(self, store: CheckpointStore, beside: bool, group: Group | None = None) -> None:
        self.store = store
        self._group = group or Group(0, 1, torch.device("cpu"))
        self._beside = beside
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
            return
        # What ended the training is worth more than this.
        try:
            self.wait()
        except (OSError, FmdistError) as failed:
            logger.warning("the last checkpoint could not be written (%s)", failed)

    def submit(self, step: int, copied: Snapshot, state: Mapping[str, Any], score: float | None) -> str:
        """Have a snapshot committed once the one before it is; return the folder that it will have."""
        self.wait()
        if self._beside:
            arguments = (step, copied, state, score)
            self._thread = threading.Thread(target=self._commit, args=arguments, name="checkpoint")
            self._thread.start()
        else:
            self.store.commit(step, copied, state, score)
        return str(self.store.path(step, score))

    def wait(self) -> None:
        """Return once everything is committed.

        Raises:
            OSError: such as for a full disk.
        """
        if self._thread is not None:
            with self._group.busy():
                self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _commit(self, step: int, copied: Snapshot, state: Mapping[str, Any], score: float | None) -> None:
        try:
            self.store.commit(step, copied, state, score)
        except BaseException as error:
            self._error = error
