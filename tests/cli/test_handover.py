"""Where a program goes on that moves, by what the other machine answers and what the store says. Its real ssh:
tests/remote/migrations.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ijfs.cli.far_host import AnsweredError, FarHost, UnreachableError
from ijfs.cli.handover import STAYS, Handover, UndecidedError
from ijfs_engine import Repository, import_directory

NAME = "lab"


class Scripted(FarHost):
    """Another machine of which each verb's answer is given: a list of instances, an error, or None for none."""

    def __init__(self) -> None:
        super().__init__("true", "elsewhere", "ijfs")
        self.answers: dict[str, Any] = {"fetch": {}, "ps": [], "restore": {"instance": {}}}
        self.asked: list[str] = []

    def run(self, *words: str, said: str = "", may_refuse: bool = False) -> dict[str, Any]:
        self.asked.append(words[-1] if words[0] == "restore" else words[0])
        answer = self.answers[words[0]]
        if callable(answer):
            answer = answer(words)
        if answer is None:
            raise UnreachableError("no answer")
        if isinstance(answer, AnsweredError):
            raise answer
        return {"instances": answer} if words[0] == "ps" else dict(answer)


def refusal(kind: str) -> AnsweredError:
    error = AnsweredError("it says no")
    error.kind = kind
    return error


@pytest.fixture
def there() -> Scripted:
    return Scripted()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo") as repository:
        repository.remotes.add("origin", f"file://{tmp_path}/bucket")
        saved = import_directory(repository, tmp_path / "repo" / "remotes", branch=NAME)
        repository.remotes.push("origin", {f"branch/{NAME}": saved.id})
        yield repository


@pytest.fixture
def handover(repository: Repository, there: Scripted) -> Handover:
    return Handover(repository, "origin", there, NAME, repository.refs.branches()[NAME].hex())


def claimed(repository: Repository) -> str:
    """Where it goes on, as the store has it."""
    return repository.remotes.claim("origin", repository.refs.branches()[NAME], "nobody said yet")


def instance(handover: Handover) -> dict[str, str]:
    return {"name": NAME, "status": "running", "snapshot": handover._snapshot}


def test_who_says_first_where_it_goes_on_is_right(repository: Repository) -> None:
    ident = repository.refs.branches()[NAME]
    assert repository.remotes.claim("origin", ident, "at elsewhere") == "at elsewhere"
    assert repository.remotes.claim("origin", ident, STAYS) == "at elsewhere"
    assert repository.remotes.claim("origin", ident, "at elsewhere") == "at elsewhere"
    assert repository.remotes.gc("origin").packs_marked == 0
    assert claimed(repository) == "at elsewhere"
    repository.remotes.gc("origin", grace_s=0)
    assert claimed(repository) == "nobody said yet"


def test_what_was_never_asked_for_there_stays(handover: Handover, there: Scripted, repository: Repository) -> None:
    there.answers["fetch"] = None
    with pytest.raises(UnreachableError):
        handover.ask()
    assert handover.where() == "here"
    assert there.asked == ["fetch"]


def test_a_refusal_brings_it_back(handover: Handover, there: Scripted) -> None:
    there.answers["restore"] = refusal("StorageError")
    with pytest.raises(AnsweredError):
        handover.ask()
    assert handover.where() == "here"


def test_a_lost_answer_of_a_program_that_runs_there_is_no_failure(handover: Handover, there: Scripted) -> None:
    there.answers["restore"] = None
    with pytest.raises(UnreachableError):
        handover.ask()
    there.answers["ps"] = [instance(handover)]
    assert handover.where() == "there"


def test_a_machine_that_is_gone_before_it_began_will_not_begin(
    handover: Handover, there: Scripted, repository: Repository
) -> None:
    there.answers |= {"restore": None, "ps": None}
    with pytest.raises(UnreachableError):
        handover.ask()
    assert handover.where() == "here"
    assert claimed(repository) == STAYS


def test_a_machine_that_is_gone_and_said_that_it_begins_is_waited_for(
    handover: Handover, there: Scripted, repository: Repository
) -> None:
    def begins(words: tuple[str, ...]) -> None:
        repository.remotes.claim("origin", repository.refs.branches()[NAME], words[-1])

    there.answers |= {"restore": begins, "ps": None}
    with pytest.raises(UnreachableError):
        handover.ask()
    assert claimed(repository) == handover.place

    def comes_back(seconds: float) -> None:
        there.answers["ps"] = [instance(handover)]

    assert handover.where(pause=comes_back) == "there"
    there.answers["ps"] = None
    with pytest.raises(UndecidedError, match="does not say whether it runs there"):
        handover.where(patience_s=-1, pause=lambda seconds: None)


def test_what_came_to_nothing_there_is_known_by_its_free_name(
    handover: Handover, there: Scripted, repository: Repository
) -> None:
    def begins(words: tuple[str, ...]) -> None:
        repository.remotes.claim("origin", repository.refs.branches()[NAME], words[-1])

    there.answers["restore"] = begins
    with pytest.raises(UnreachableError):
        handover.ask()
    there.answers["restore"] = refusal("InstanceExistsError")  # its name is held: it is being made

    def fails(seconds: float) -> None:
        there.answers["restore"] = refusal("ConflictError")

    assert handover.where(pause=fails) == "here"
    assert there.asked.count(handover.place) == 1
