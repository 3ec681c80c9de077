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

    A subclass says what decides the result (`key`), how it is made (`make`) and how it is read back (`result`).
    `run` skips what is done, continues what was begun, and refuses a folder that belongs to something else.

    Attributes:
        kind: names the stage in its record.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the result lies."""

    @property
    def resume(self) -> bool:
        """Whether what lies in the folder counts; else the stage is made anew."""
        return True

    @abstractmethod
    def key(self) -> Mapping[str, Any]:
        """All that decides the result, each value in one spelling; see `records.canonical`."""

    @abstractmethod
    def make(self) -> Result:
        """Do the work, from where an interrupted run left it; see `begin`."""

    @abstractmethod
    def result(self) -> Result:
        """What `make` returned, read from the folder."""

    @cached_property
    def record(self) -> RunRecord:
        """What the folder will say."""
        return RunRecord(self.kind, self.key())

    def done(self) -> bool:
        """Whether the folder holds the result.

        Raises:
            ReIDError: if it holds something else, finished or begun; says what differs.
        """
        found = RunRecord.read(self.folder)
        if found is None:
            return False
        found.check(self.record, self.folder)
        return found.done and self.is_whole(found.found)

    def is_whole(self, facts: Mapping[str, Any]) -> bool:
        """Whether what a finished stage left is still there; see `facts`."""
        return True

    def run(self) -> Result:
        """The result: read if the stage is done, else made.

        Raises:
            ReIDError: see `done`.
        """
        if self.resume and self.done():
            return self.result()
        result = self.make()
        self._note(self.record.finished(**self.facts(result)))
        return result

    def facts(self, result: Result) -> dict[str, Any]:
        """What the record of the finished stage says beside its key."""
        return {}

    def begin(self) -> None:
        """Note in the folder what is about to be made there; `make` calls it when nothing can be refused any more."""
        self._note(self.record)

    def _note(self, record: RunRecord) -> None:
        wait_for_everyone()  # all have read what was there
        if is_main_process():
            record.write(self.folder)
        wait_for_everyone()
