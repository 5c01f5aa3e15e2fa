"""Settings: where a value comes from, which of several wins, and that a wrong one is a sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import Ijfs
from json_page import check

from ijfs import settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the settings hand on to deeper layers is gone after a test."""
    for setting in settings.SETTINGS.values():
        if setting.variable:
            monkeypatch.setenv(setting.variable, "")
    yield
    settings._handed_on.clear()


def shown(ijfs: Ijfs, name: str) -> tuple[str, str]:
    """A setting's value, and where it comes from."""
    (row,) = ijfs("config", name, "--json").json["settings"]
    return row["value"], row["source"]


def test_all_settings_are_shown_with_where_they_come_from(ijfs: Ijfs) -> None:
    data = ijfs("config", "--json").json
    check(data, "config")
    assert [row["name"] for row in data["settings"]] == list(settings.SETTINGS)
    assert {row["source"] for row in data["settings"]} == {"built in"}
    out = ijfs("config").out
    assert "slirp4netns" in out
    assert data["path"].split("/")[-2:] == ["ijfs", "config.toml"]
    assert not Path(data["path"]).exists(), "who looks writes nothing"


def test_the_file_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from platformdirs import user_config_path

    for place in ("/somewhere", ""):
        monkeypatch.setenv("XDG_CONFIG_HOME", place)
        assert settings.path() == user_config_path("ijfs", appauthor=False) / "config.toml"


def test_the_nearest_of_several_wins(ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(ijfs, "spare_s") == ("600", "built in")
    assert ijfs("config", "spare_s", "60").code == 0
    assert shown(ijfs, "spare_s") == ("60", str(settings.path()))
    monkeypatch.setenv("IJFS_DEFAULTS", "network=slirp4netns, spare_s=30")
    assert shown(ijfs, "spare_s") == ("30", "IJFS_DEFAULTS")
    assert shown(ijfs, "network") == ("slirp4netns", "IJFS_DEFAULTS")
    monkeypatch.setenv("IJFS_SPARE_S", "7")
    assert shown(ijfs, "spare_s") == ("7", "IJFS_SPARE_S")


def test_a_value_with_blanks_ends_where_the_next_name_begins(ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IJFS_DEFAULTS", "auto=on --every 60 gpu=true")
    assert shown(ijfs, "auto")[0] == "on --every 60"
    assert settings.is_true("gpu")


def test_deeper_layers_find_what_they_read_from_variables(ijfs: Ijfs, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    assert ijfs("config", "repository", there).code == 0
    assert ijfs("init", "--json").json["path"] == str(there)
    assert ijfs("config", "save_memory", "4G").code == 0
    assert ijfs("stats").code == 0
    assert os.environ["IJFS_SAVE_MEMORY"] == "4G"
    assert shown(ijfs, "save_memory") == ("4G", str(settings.path())), "handed on is not said by the user"


def test_what_is_written_leaves_the_rest_of_the_file_alone(ijfs: Ijfs) -> None:
    file = settings.path()
    file.parent.mkdir(parents=True)
    file.write_text("# mine\ngpu = true\n")
    assert ijfs("config", "network", "slirp4netns").code == 0
    assert ijfs("config", "network", "none").code == 0
    assert file.read_text() == 'network = "none"\n# mine\ngpu = true\n'
    assert shown(ijfs, "gpu")[0] == "true"
    assert ijfs("config", "--unset", "network").code == 0
    assert file.read_text() == "# mine\ngpu = true\n"
    assert stat.S_ISREG(file.lstat().st_mode)
    assert os.listdir(file.parent) == ["config.toml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("network = 'all'\n", "network cannot be 'all'"),
        ("colour = 1\n", "no setting 'colour'"),
        ("network\n", "no TOML"),
    ],
)
def test_a_wrong_file_is_a_sentence_with_its_place(ijfs: Ijfs, repo: Path, content: str, said: str) -> None:
    settings.path().parent.mkdir(parents=True)
    settings.path().write_text(content)
    result = ijfs("-r", repo, "stats")
    assert (result.code, said in result.err, str(settings.path()) in result.err) == (2, True, True)
    assert ijfs("--help").code == 0


@pytest.mark.parametrize(
    "argv", [["network", "all"], ["colour"], ["colour", "blue"], ["--unset", "colour"], ["--unset"]]
)
def test_a_wrong_setting_is_refused_and_nothing_is_written(ijfs: Ijfs, argv: list[str]) -> None:
    assert ijfs("config", *argv).code == 2
    assert not settings.path().exists()


def test_the_options_of_a_start_have_the_settings_as_their_defaults(
    ijfs: Ijfs, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ijfs.cli.verbs.run import COMMANDS

    monkeypatch.setenv("IJFS_DEFAULTS", "network=slirp4netns gpu=true port_address=0.0.0.0")
    with COMMANDS["run"].make_context("run", ["-p", "80", "true"]) as context:
        assert context.params["network"].network == "slirp4netns"
        assert context.params["gpu"] is True
        assert context.params["ports"][0].address == "0.0.0.0"
    with COMMANDS["run"].make_context("run", ["--network", "none", "--no-gpu", "true"]) as context:
        assert (context.params["network"].network, context.params["gpu"]) == ("none", False)


def test_kernels_that_jupyter_starts_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from ijfs.jupyter.provisioner import IjfsProvisioner

    monkeypatch.setenv("IJFS_DEFAULTS", "network=slirp4netns auto=on")
    assert IjfsProvisioner().network == "slirp4netns"
    assert IjfsProvisioner(network="none").network == "none"
    assert IjfsProvisioner().auto == "", "only for IPython kernels"


def test_a_settings_own_variable_counts_without_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settings.path().exists()
    assert settings.value("spare_s") == "600"
    monkeypatch.setenv("IJFS_SPARE_S", "7")
    assert settings.value("spare_s") == "7"
