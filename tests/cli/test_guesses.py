"""What a newcomer types by guess: words and options of git, docker and restic find their way, or are told it."""

from __future__ import annotations

from pathlib import Path

import pytest
from calls import Ijfs
from hypothesis import given
from hypothesis import strategies as st

from ijfs.cli import synonyms
from ijfs.cli.main import VERBS

# Typed by newcomers who had not read the help.
TYPED = (
    "status commit checkout switch attach inspect version help clone pull push config backup snapshots snapshot images "
    "kill load checkpoint merge history check info shell connect console delete forget add cp undo blame upgrade "
    "uninstall install jupyter list start pause create dump reset revert stash top rename resume reflog kernels"
)
NEVER = {
    "top": "stop",
    "pause": "prune",
    "forget": "fork",
    "push": "ps",
    "status": "stats",
    "reset": "tree",
    "list": "ls",
}


@pytest.mark.parametrize("word", TYPED.split())
def test_every_word_of_other_tools_is_done_or_answered_with_what_to_type(ijfs: Ijfs, repo: Path, word: str) -> None:
    result = ijfs(word)
    understood = word in VERBS or word in synonyms.DONE_AS or word in ("help", "version")
    assert (
        understood
        or "`ijfs " in result.err.splitlines()[0]
        or "`cp -a`" in result.err
        or "whole" in result.err
        or "pip install" in result.err
    )
    assert "did you mean" not in result.err
    assert "no verb" in result.err or understood


@pytest.mark.parametrize("word", sorted(NEVER))
def test_a_word_of_another_meaning_is_never_taken_for_one_that_is_spelt_like_it(
    ijfs: Ijfs, repo: Path, word: str
) -> None:
    result = ijfs(word)
    assert f"`ijfs {NEVER[word]}`" not in result.err


def test_what_is_answered_names_verbs_that_there_are() -> None:
    assert {verb.split()[0] for verb in synonyms.DONE_AS.values()} <= set(VERBS)
    assert not set(synonyms.DONE_AS) & set(VERBS)
    assert not set(synonyms.SAID) & {*VERBS, *synonyms.DONE_AS}


@pytest.mark.parametrize(("typed", "meant"), [("lgo", "log"), ("sve", "save"), ("restroe", "restore"), ("tre", "tree")])
def test_a_slip_of_the_fingers_is_guessed(ijfs: Ijfs, typed: str, meant: str) -> None:
    result = ijfs(typed)
    assert result.code == 2
    assert f"did you mean `ijfs {meant}`?" in result.err


def test_a_word_that_nobody_can_tell_gets_no_guess(ijfs: Ijfs) -> None:
    result = ijfs("xyzzy")
    assert (result.code, result.out) == (2, "")
    assert result.err == "ijfs: there is no verb 'xyzzy'\nhint: `ijfs --help` lists the verbs\n"


def test_help_and_version_are_done_however_they_are_asked_for(ijfs: Ijfs) -> None:
    assert ijfs("help").out == ijfs("--help").out
    assert ijfs("help", "save").out == ijfs("save", "--help").out
    assert ijfs("help", "kernel", "start").out == ijfs("kernel", "start", "--help").out
    assert ijfs("version").out == ijfs("--version").out


def test_a_word_that_only_looks_is_done_under_the_verbs_own_name(ijfs: Ijfs, repo: Path) -> None:
    assert ijfs("status", "--json").json["verb"] == "ps"
    assert ijfs("snapshots").err == "this is `ijfs log`\n"
    assert ijfs("snapshots", "--json").err == ""


@pytest.mark.parametrize(
    "argv",
    [
        *(["ps", "-a"], ["log", "--oneline"], ["log", "--all"], ["branch", "-a"], ["branch", "--list"], ["tag", "-l"]),
        *(["tree", "--graph"], ["stop", "-f", "--all"]),
    ],
)
def test_options_that_ask_for_what_is_done_anyway_are_taken(ijfs: Ijfs, repo: Path, argv: list[str]) -> None:
    assert ijfs(*argv).code == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["log", "--graph"], "`ijfs tree`"),
        (["run", "-i", "bash"], "-it"),
        (["run", "--rm", "bash"], "`ijfs stop --rm NAME`"),
        (["run", "-v", "/data:/data", "bash"], "sees this machine's files"),
        (["restore", "--hard", "lab~1"], "`--replace`"),
        (["branch", "-m", "old", "new"], "`ijfs branch NEW OLD`"),
        (["tag", "-m", "text", "v1"], "`ijfs save -m TEXT`"),
        (["show", "HEAD~1"], "`lab~1` the one before"),
    ],
)
def test_options_for_what_is_done_in_another_way_are_told_how(
    ijfs: Ijfs, repo: Path, argv: list[str], said: str
) -> None:
    result = ijfs(*argv)
    assert result.code in (1, 2)
    assert said in result.err


def test_an_option_is_guessed_by_a_slip_of_the_fingers_alone(ijfs: Ijfs, repo: Path) -> None:
    assert ijfs("diff", "--varables").err.splitlines() == [
        "ijfs: no such option '--varables': did you mean `--variables`?",
        "hint: `ijfs diff --help` shows how",
    ]
    for argv in (["run", "--gpus", "2", "x"], ["log", "--author", "me"], ["gc", "--prune=now"]):
        assert ("did you mean" in ijfs(*argv).err) == (argv[1] == "--gpus"), argv


def test_a_command_of_exec_needs_no_double_dash(ijfs: Ijfs, repo: Path) -> None:
    for argv in (
        ["-it", "lab", "python", "-c", "1"],
        ["lab", "sh", "-c", "1"],
        ["--timeout", "5", "lab", "x"],
    ):
        result = ijfs("exec", *argv)
        assert (result.code, "there is no program `lab`" in result.err) == (1, True), argv
    assert "not a kernel" not in ijfs("exec", "lab", "-c", "1").err


@given(st.text("abcde", max_size=7), st.text("abcde", max_size=7))
def test_the_distance_of_two_words_is_a_distance(left: str, right: str) -> None:
    found = synonyms.distance(left, right)
    assert found == synonyms.distance(right, left)
    assert (found == 0) == (left == right)
    assert abs(len(left) - len(right)) <= found <= max(len(left), len(right))


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["diff"], "ijfs: nothing is live"),
        (["export", "x"], "hint: `ijfs export SNAPSHOT DIRECTORY`; "),
        (["save", "-m"], "hint: `ijfs save --help` shows how"),
        (["kernel"], "ijfs: say which: `ijfs kernel start`, "),
        (["logs"], "ijfs: nothing is live: `ijfs ps -a` shows"),
        (["save"], "ijfs: nothing is live"),
        (["cp"], "hint: `ijfs cp SOURCE... DEST`; "),
        (["cp", "x"], "ijfs: missing argument 'DEST'"),
        (["completion"], "ijfs: missing argument '{bash|fish|zsh}'. Choose from: bash, fish, zsh"),
        (["save", "lab", "a message"], "hint: `ijfs save [NAME] [-m TEXT]`; "),
        (["kernel", "start", "lab"], "hint: `ijfs kernel start [--name N]`; "),
    ],
)
def test_what_was_left_out_or_is_too_much_is_said_with_what_the_verb_takes(
    ijfs: Ijfs, repo: Path, argv: list[str], hint: str
) -> None:
    result = ijfs(*argv)
    assert (result.code, result.out) == (2, "")
    assert hint in result.err


@pytest.mark.parametrize("argv", [["restore", "lab"], ["rm", "lab"], ["show", "lab~1"]])
def test_a_program_that_was_never_saved_is_told_from_a_name_of_nothing(ijfs: Ijfs, repo: Path, argv: list[str]) -> None:
    assert "`ijfs log` lists snapshots" in ijfs(*argv).err
    (repo / "live" / "lab").mkdir(parents=True)
    (repo / "live" / "lab" / "instance.json").touch()
    result = ijfs(*argv)
    assert (result.code, "no snapshot, branch or tag is called 'lab'" in result.err) == (1, True)
    assert "hint: `lab` is a program of which there is no snapshot: `ijfs save lab` makes one" in result.err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["undo", "lab"], "`ijfs restore lab --replace`"),
        (["commit", "lab", "-m", "text"], "`ijfs save lab -m TEXT`"),
        (["commit", "-m", "text"], "`ijfs save NAME -m TEXT`"),
        (["reset", "HEAD~1"], "`ijfs restore NAME --replace`"),
        (["checkout", "-b", "lab"], "`ijfs restore NAME --replace`"),
    ],
)
def test_what_to_type_instead_has_the_name_that_was_typed(ijfs: Ijfs, typed: list[str], said: str) -> None:
    assert said in ijfs(*typed).err


def test_a_second_init_says_that_there_is_one(ijfs: Ijfs, repo: Path) -> None:
    result = ijfs("init")
    assert (result.code, "there is a repository at" in result.err) == (1, True)
    assert ijfs("log").code == 0


def test_a_diff_of_the_latest_with_nothing_else_is_with_its_parent(ijfs: Ijfs, many: Path, tmp_path: Path) -> None:
    (tmp_path / "d" / "new").write_text("x")
    assert ijfs("import", tmp_path / "d", "-m", "with a file").code == 0
    result = ijfs("diff", "main")
    assert "+ files/new" in result.out
    assert "compared with its parent" in result.err
    assert "compared with `latest`" in ijfs("diff", "main~1").err


@pytest.fixture
def many(ijfs: Ijfs, repo: Path, tmp_path: Path) -> Path:
    """A repository with the branches agent-1 to agent-11, and others."""
    (tmp_path / "d").mkdir()
    assert ijfs("import", tmp_path / "d", "-m", "empty").code == 0
    for name in (*(f"agent-{i}" for i in range(11, 0, -1)), "other"):
        assert ijfs("branch", name, "main").code == 0
    assert ijfs("tag", "agent-tag", "main").code == 0
    return repo


def test_a_pattern_stands_for_every_name_it_fits(ijfs: Ijfs, many: Path) -> None:
    removed = ijfs("rm", "agent-?", "agent-1*", "--dry-run", "--json").json["removed"]
    assert [item["name"] for item in removed] == [f"agent-{i}" for i in range(1, 12)]
    assert ijfs("rm", "-rf", "agent-*").code == 0
    assert set(ijfs("branch", "--json").json["branches"]) == {"main", "other"}
    assert ijfs("tag", "--json").json["tags"] == {}


def test_a_pattern_that_fits_nothing_is_an_error_and_nothing_is_removed(ijfs: Ijfs, many: Path) -> None:
    result = ijfs("rm", "other", "robot-*")
    assert (result.code, "no name fits the pattern 'robot-*'" in result.err) == (1, True)
    assert "other" in ijfs("branch", "--json").json["branches"]
    assert ijfs("stop", "--rm", "agent-*").code == 1


def test_siblings_of_one_name_are_refused_before_anything_is_saved(ijfs: Ijfs, many: Path) -> None:
    result = ijfs("fork", "main", "--names", "a,b,a")
    assert (result.code, "--names gives a twice" in result.err) == (2, True)


def test_a_snapshot_of_files_alone_is_not_restored_and_takes_nobodys_place(ijfs: Ijfs, repo: Path) -> None:
    import msgspec

    from ijfs.live.model.records import InstanceSpec
    from ijfs_engine import Repository

    meta = {"spec": msgspec.to_builtins(InstanceSpec(name="job", argv=("true",))), "ended": True}
    with Repository.open(repo) as repository, repository.begin() as writer:
        writer.add_file("files/result", b"precious")
        writer.commit(branch="job.ended", meta=meta)
    left = repo / "live" / "job"
    left.mkdir(parents=True)
    result = ijfs("restore", "job.ended")
    assert (result.code, "there is no program in it to bring back" in result.err) == (2, True)
    assert "unexpected" not in result.err
    assert left.is_dir()


def test_names_with_numbers_are_listed_in_the_order_of_the_numbers(ijfs: Ijfs, many: Path) -> None:
    names = [line.split()[0] for line in ijfs("branch").out.splitlines()[1:]]
    assert names == [*(f"agent-{i}" for i in range(1, 12)), "main", "other"]


def test_a_caret_is_a_step_back(ijfs: Ijfs, many: Path, tmp_path: Path) -> None:
    (tmp_path / "d" / "f").touch()
    assert ijfs("import", tmp_path / "d").code == 0
    back = ijfs("show", "main^", "--json").json
    assert back["id"] == ijfs("show", "main~1", "--json").json["id"] == ijfs("show", "other", "--json").json["id"]
    assert ijfs("show", "main^^").code == 1
