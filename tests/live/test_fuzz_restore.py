"""A few of fuzz_restore.py's restores from damaged copies. `make fuzz-restores` is longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz_restore import Restores
from live_env import open_env

pytestmark = [pytest.mark.root, pytest.mark.criu]


@pytest.fixture(scope="module")
def restores(live_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restores]:
    """A repository with a saved program."""
    folder = tmp_path_factory.mktemp("fuzz")
    with open_env(folder) as env:
        yield Restores(env, folder, 1)


def test_a_restore_from_a_damaged_copy_brings_what_was_saved_or_says_so(restores: Restores) -> None:
    ended = [restores.case(number)[1] for number in range(3)]
    assert set(ended) <= {"right", "refused", "lost some, and says so"}


def test_a_program_that_died_of_memory_that_cannot_be_had_is_shown_with_the_reason(restores: Restores) -> None:
    assert restores.spoilt(400_000) == "lost some, and says so"
