"""Instance names derived from notebooks are always names the live layer takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ijfs.jupyter.naming import instance_name, notebook_of_command
from ijfs.live.model.paths import check_name

ID = "1f0c2a4e-9a55-4a5c-8a39-000000000000"


def test_named_after_the_notebook() -> None:
    assert instance_name("/home/me/My Data (v2).ipynb", "ijfs-python3", ID) == "my-data-v2-1f0c2a4e"


def test_named_after_the_kernel_without_a_notebook() -> None:
    assert instance_name("", "ijfs-python3", ID) == "ijfs-python3-1f0c2a4e"


@pytest.mark.parametrize(
    ("command", "notebook"),
    [
        ("/bin/papermill -k ijfs-python3 a/study.ipynb out.ipynb", "a/study.ipynb"),
        ("/lib/papermill/__main__.py study.ipynb -", "study.ipynb"),
        ("/bin/jupyter-nbconvert --to notebook --execute study.ipynb", "study.ipynb"),
        ("/bin/jupyter-nbconvert --execute --output out.ipynb study.ipynb", "study.ipynb"),
        ("/bin/jupyter-nbconvert --execute --output=out.ipynb study.ipynb", "study.ipynb"),
        ("/bin/jupyter-nbconvert --execute a.ipynb b.ipynb", ""),
        ("/bin/jupyter-console --kernel ijfs-python3", ""),
    ],
)
def test_programs_that_run_one_notebook_are_started_for_it(command: str, notebook: str) -> None:
    assert notebook_of_command(command.split()) == notebook


@given(st.text(), st.text())
def test_any_session_gives_a_name_that_is_taken(session: str, kernel: str) -> None:
    assert check_name(instance_name(session, kernel, ID)).endswith("-1f0c2a4e")
