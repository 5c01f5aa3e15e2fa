"""`ijfs base`: what it says and prints as JSON; and what ijfs says where it may not make sandboxes."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import COMMAND, Ijfs
from json_page import check

from ijfs.cli import sudo

NOBODY = 65534
SUDO = {"SUDO_USER": "nobody", "SUDO_UID": "65534"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with next to nothing in it."""
    made = tmp_path / "image"
    (made / "etc").mkdir(parents=True)
    (made / "etc/motd").write_text("hello\n")
    (made / "tmp").mkdir()
    (made / "tmp/left-out").write_text("x")
    time.sleep(0.05)
    return made


def test_a_base_is_imported_listed_compared_and_removed(ijfs: Ijfs, repo: Path, root: Path) -> None:
    assert "no base yet" in ijfs("base", "list").out
    made = ijfs("base", "import", root, "--json")
    check(made.json, "base import")
    assert (made.json["name"], made.json["files"], made.json["changed"]) == ("image", 1, True)
    assert "nothing changed" in ijfs("base", "import", root).out
    listed = ijfs("base", "list", "--json").json
    check(listed, "base list")
    assert [base["name"] for base in listed["bases"]] == ["image"]
    assert "image" in ijfs("base", "list").out
    assert "no difference" in ijfs("base", "diff", "image").out
    (root / "etc/motd").write_text("hello there\n")
    changes = ijfs("base", "diff", "image", "--json").json
    check(changes, "base diff")
    assert changes["changes"] == [{"change": "changed", "path": "/etc/motd"}]
    refused = ijfs("tag", "-d", "base@image")
    assert (refused.code, "ijfs base rm image" in refused.err) == (1, True)
    assert ijfs("rm", "base@image").code == 1
    assert ijfs("restore", "base@image").code != 0
    removed = ijfs("base", "rm", "image", "--json")
    check(removed.json, "base rm")
    swept = ijfs("gc", "--json").json
    check(swept, "gc")
    assert swept["snapshots_removed"] == 0


def test_a_name_that_no_base_has_or_can_have_is_said(ijfs: Ijfs, repo: Path, root: Path) -> None:
    assert "there is no base `other`" in ijfs("base", "rm", "other").err
    assert ijfs("base", "import", root, "--name", "a/b").code == 2
    assert ijfs("base", "diff").code != 0


@pytest.fixture
def open_repo(ijfs: Ijfs) -> Iterator[Path]:
    """A repository that anybody may use."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    path = directory / "repo"
    assert ijfs("init", path).code == 0
    for at, names, files in os.walk(path):
        for name in (".", *names, *files):
            os.chown(os.path.join(at, name), NOBODY, NOBODY)
    yield path
    shutil.rmtree(directory)


@pytest.mark.root
def test_an_ordinary_user_is_told_before_anything_starts(open_repo: Path) -> None:
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*as_nobody, *COMMAND, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this checkout cannot be read by an ordinary user")
    for verb in (["run", "--", "sleep", "9"], ["kernel", "start"]):
        command = [*as_nobody, *COMMAND, "-r", str(open_repo), *verb]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": "/"})
        assert done.returncode == 12, done.stderr
        assert "is not root" in done.stderr
        assert "hint: `sudo -E ijfs" in done.stderr
        assert not (open_repo / "live").exists()


@pytest.mark.root
def test_in_a_user_namespace_a_sentence_says_so(repo: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*unshare, *COMMAND, "run", "--", "sleep", "9"], capture_output=True, text=True, check=False)
    assert (done.returncode, "this is a user namespace" in done.stderr) == (12, True), done.stderr
    looked = subprocess.run([*unshare, *COMMAND, "doctor"], capture_output=True, text=True, check=False)
    assert (looked.returncode, "this is a user namespace" in looked.stdout) == (12, True)
    listed = subprocess.run([*unshare, *COMMAND, "log"], capture_output=True, text=True, check=False)
    assert listed.returncode == 0


@pytest.mark.root
def test_under_sudo_the_repository_is_named(run_ijfs: Ijfs, tmp_path: Path) -> None:
    found = run_ijfs("init", env=SUDO)
    assert found.code == 0
    assert found.err.count("this is root's repository") == 1
    assert "`sudo ijfs config user sudo` makes both nobody's" in found.err
    assert "root's" not in run_ijfs("-r", tmp_path / "other", "init", env=SUDO).err


@pytest.mark.root
def test_under_sudo_programs_and_repository_can_be_those_of_who_called_it(
    run_ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_DEFAULTS", "user=sudo")
    assert (sudo.program_user("sudo"), sudo.repository()) == ("", None), "nobody called sudo"
    for name, value in SUDO.items():
        monkeypatch.setenv(name, value)
    assert sudo.program_user("sudo") == "65534"
    assert sudo.program_user("root") == ""
    assert sudo.program_user("daemon") == "daemon"
    home = pwd.getpwuid(65534).pw_dir
    assert sudo.repository() == Path(home) / ".local/share/ijfs"
    assert f"there is no ijfs repository at {home}/.local/share/ijfs" in run_ijfs("log").err
