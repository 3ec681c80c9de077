"""A stage: a step of work whose result is a folder, which is skipped, continued or refused by what the folder says."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from reid_hub.records import RunRecord
from reid_hub.runs.processes import is_main_process, wait_for_everyone

Result = TypeVar("Result")


class Stage(ABC, Generic[Result]):
    """One step of a run.

    A subclass defines what determines the result (`key`), how to make it (`make`) and how to read it back (`result`).
    `run` skips a finished stage, resumes an interrupted one, and rejects a folder that belongs to something else.

    Attributes:
        kind: names the stage in its record.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder of the result."""

    @property
    def resume(self) -> bool:
        """Whether to use what is in the folder; otherwise the stage starts over."""
        return True

    @abstractmethod
    def key(self) -> Mapping[str, Any]:
        """Everything that determines the result, with each value in canonical form; see `records.canonical`."""

    @abstractmethod
    def make(self) -> Result:
        """Do the work, from where an interrupted run left it; see `begin`."""

    @abstractmethod
    def result(self) -> Result:
        """What `make` returned, read from the folder."""

    @cached_property
    def record(self) -> RunRecord:
        """The record to write to the folder."""
        return RunRecord(self.kind, self.key())

    def done(self) -> bool:
        """Whether the folder contains the result.

        Raises:
            ReIDError: if it contains another result, finished or begun; the message says what differs.
        """
        found = RunRecord.read(self.folder)
        if found is None:
            return False
        found.check(self.record, self.folder)
        return found.done and self.is_whole(found.found)

    def is_whole(self, facts: Mapping[str, Any]) -> bool:
        """Whether the outputs of a finished stage still exist; see `facts`."""
        return True

    def run(self) -> Result:
        """The result: read if the stage is done, else made.

        Raises:
            ReIDError: see `done`.
        """
        if self.resume and self.done():
            result = self.result()
        else:
            result = self.make()
            self._note(self.record.finished(**self.facts(result)))
        if is_main_process():
            self.publish()
        return result

    def publish(self) -> None:
        """Publish the result, if the settings ask for it: last, so that a push that failed is all that is repeated."""

    def facts(self, result: Result) -> dict[str, Any]:
        """Facts that the record of the finished stage stores beside its key."""
        return {}

    def begin(self) -> None:
        """Record in the folder what is about to be made there; `make` calls it after all checks."""
        self._note(self.record)

    def _note(self, record: RunRecord) -> None:
        wait_for_everyone()  # all have read what was there
        if is_main_process():
            record.write(self.folder)
        wait_for_everyone()
