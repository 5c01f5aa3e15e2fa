"""What is saved goes to a remote as well: which remote is meant, what is not there yet, and a store that goes away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.cli.main import invoke
from ijfs.live.uploads import followed, pusher
from ijfs_engine import Repository, import_directory
from ijfs_engine.errors import UnknownNameError


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def repo(tmp_path: Path, bucket: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / "file").write_text("what is kept")
    with Repository.init(tmp_path / "repo") as repository:
        repository.remotes.add("origin", f"file://{bucket}")
        import_directory(repository, work, branch="lab")
    return tmp_path / "repo"


def waiting(repo: Path) -> list[followed.Waiting]:
    with Repository.open(repo) as repository:
        return followed.waiting(repository)


def at_remote(repo: Path) -> dict[str, bytes]:
    with Repository.open(repo) as repository:
        repository.remotes.fetch("origin")
        return repository.remotes.known("origin").refs


def test_s3_is_origin_or_the_only_remote(repo: Path) -> None:
    with Repository.open(repo) as repository:
        assert followed.remote_of(repository, "s3") == "origin"
        assert followed.remote_of(repository, "local") == ""
        repository.remotes.remove("origin")
        with pytest.raises(UnknownNameError, match="no remote to save to"):
            followed.remote_of(repository, "s3")
        repository.remotes.add("far", "s3://bucket/far")
        assert followed.remote_of(repository, "s3") == followed.remote_of(repository, "far") == "far"
        with pytest.raises(UnknownNameError, match="no remote 'origin'"):
            followed.remote_of(repository, "origin")


def test_a_branch_is_at_one_remote_and_a_save_without_one_says_so(repo: Path, tmp_path: Path) -> None:
    with Repository.open(repo) as repository:
        repository.remotes.add("other", f"file://{tmp_path}/other")
        assert not followed.stays(repository, "lab", "origin")
        assert not followed.stays(repository, "lab", "other")
        assert followed.followed(repo) == [("other", "lab")]
        assert "there is no remote 'gone'" in followed.stays(repository, "lab", "gone")
        repository.remotes.remove("other")
        assert followed.waiting(repository) == []


def test_what_a_store_that_is_away_does_not_get_it_gets_when_it_is_back(repo: Path, bucket: Path) -> None:
    bucket.touch()  # no directory: nothing can be read or written there
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        (one,) = waiting(repo)
        assert (one.remote, one.branch) == ("origin", "lab")
        assert "bucket" in one.why
        if len(pauses) == 3:
            bucket.unlink()

    followed.follow(repo, "lab", "origin")
    assert [one.why for one in waiting(repo)] == [""]
    pusher.run(repo, pause)
    assert pauses == [2, 4, 8]
    assert waiting(repo) == []
    assert followed.failures(repo) == {}
    with Repository.open(repo) as repository:
        assert at_remote(repo) == {"branch/lab": repository.refs.branches()["lab"]}


def test_what_is_saved_while_a_push_is_under_way_is_sent_too(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[bytes] = []
    push = pusher._sent_all

    def push_beside_a_save(path: Path, pause: Callable[[float], None]) -> bool:
        done = push(path, pause)
        if not saved:  # when it has looked for the last time, and has not let go yet
            with Repository.open(repo) as repository:
                head = repository.refs.branches()["lab"]
                saved.append(import_directory(repository, repo.parent / "work", parents=[head], branch="lab").id)
            assert pusher.is_at_work(repo)
        return done

    monkeypatch.setattr(pusher, "_sent_all", push_beside_a_save)
    followed.follow(repo, "lab", "origin")
    pusher.run(repo)
    assert at_remote(repo)["branch/lab"] == saved[0]


@pytest.mark.root
@pytest.mark.criu
def test_a_program_s_saves_go_to_its_remote(
    live_env: LiveEnv, bucket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ijfs(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke(["-r", str(live_env.repo), *words])
        return (code, *capsys.readouterr())

    with Repository.open(live_env.repo) as repository:
        repository.remotes.add("origin", f"file://{bucket}")
    bucket.touch()
    live_env.command("far", "sleep 1000", storage="origin")
    saved = live_env.save("far")
    assert not saved.warnings
    assert [one.snapshot for one in waiting(live_env.repo)] == [saved.snapshot]
    assert f"{saved.snapshot[:10]} is not at origin yet" in ijfs("ps")[1]
    code, _, said = ijfs("save", "far", "--push")
    assert code
    assert "is saved on this machine" in said
    bucket.unlink()
    code, shown, _ = ijfs("save", "far", "--push", "--json")
    pushed = json.loads(shown)
    assert (code, pushed["remote"]) == (0, "origin")
    assert eventually(lambda: "is not at origin" not in ijfs("ps")[1], 60)
    again = live_env.save("far").snapshot
    live_env.stop("far", timeout_s=0)
    assert eventually(lambda: not waiting(live_env.repo) and not pusher.is_at_work(live_env.repo), 60)
    assert at_remote(live_env.repo)["branch/far"].hex() == again
