"""The frame around the verbs: options, errors, exit codes, speed of the start. No repository content is needed."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import types
from functools import partial
from pathlib import Path
from typing import IO

import click
import pytest
from calls import COMMAND, Ijfs
from json_page import check, tables
from waiting import eventually, patient

from ijfs.cli import failure
from ijfs.cli.main import SECTIONS, VERBS, cli
from ijfs.live.client.connection import KeeperClient
from ijfs.live.model.paths import InstancePaths
from ijfs_engine.errors import (
    NOT_BUILT,
    IjfsError,
    LockedError,
    PartialError,
    PreflightError,
    StorageError,
    TargetDiedError,
)

# `ijfs --help` is answered by these and no more: rich, msgspec, lmdb, trio, jupyter_client cost 20 to 300 ms each.
HEAVY = {"rich", "msgspec", "lmdb", "trio", "jupyter_client", "numpy", "psutil", "ijfs_engine"}


def test_help_lists_every_verb_of_the_design(ijfs: Ijfs) -> None:
    verbs = (
        "init run attach kernel ps top logs watch stop cp exec save restore fork adopt deploy deployments park wake "
        "undeploy log tree show diff ls cat scan branch tag sign verify rm base import copy export mount umount remote "
        "push fetch pull clone migrate op du stats prune gc fsck keyring doctor demo config mcp serve key completion"
        " vllm"
    )
    shown = ijfs("--help").out
    for name in verbs.split():
        assert re.search(rf"^  {name} ", shown, re.MULTILINE), name
    assert set(verbs.split()) == set(VERBS)


def test_a_deployment_that_cannot_be_kept_is_refused_in_a_sentence(ijfs: Ijfs) -> None:
    ijfs("init")
    remote = ijfs("deploy", "--name", "web", "--port", "8000", "--storage", "s3", "--", "true")
    assert (remote.code, "no remote to save to" in remote.err) == (1, True)
    nowhere = ijfs("deploy", "--name", "web", "--", "true")
    assert (nowhere.code, "which port" in nowhere.err) == (2, True)
    backwards = ijfs("vllm", "serve", "--max-model-len", "8", "org/model")
    assert (backwards.code, "MODEL comes first" in backwards.err) == (2, True)
    assert "nothing is deployed" in ijfs("deployments").out


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_help_the_common_options_and_a_place_on_the_json_page(name: str) -> None:
    command = importlib.import_module(f"ijfs.cli.verbs.{VERBS[name].module}").COMMANDS[name]
    assert command.name == name
    assert command.help
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for each in commands:
        options = {o for p in each.get_params(click.Context(each)) for o in p.opts}
        assert {"-r", "--repo", "--json", "-q", "-v"} <= options
        assert (name if each is command else f"{name} {each.name}") in tables()


def test_a_verb_that_does_not_exist_is_a_usage_error_with_a_guess(ijfs: Ijfs) -> None:
    result = ijfs("lgo")
    assert result.code == 2
    assert "did you mean `ijfs log`?" in result.err


@pytest.mark.parametrize(
    "argv", [["log", "--nope"], ["run"], ["ls"], ["stop"], ["fork", "x", "-n", "0"], ["completion", "tcsh"]]
)
def test_wrong_usage_exits_2_with_one_sentence_and_a_hint(ijfs: Ijfs, repo: Path, argv: list[str]) -> None:
    result = ijfs(*argv)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("ijfs: ")
    assert "hint: `ijfs" in result.err
    assert len(result.err.splitlines()) == 2


@pytest.mark.parametrize("argv", [["log"], ["ps"], ["tree"], ["save", "x"], ["gc"], ["cat", "a", "b"], ["mount", "/"]])
def test_without_a_repository_the_exit_code_is_10_and_the_hint_says_init(
    ijfs: Ijfs, tmp_path: Path, argv: list[str]
) -> None:
    result = ijfs("-r", tmp_path / "none", *argv)
    assert result.code == 10
    assert "ijfs init" in result.err
    assert "Traceback" not in result.err


def test_errors_are_a_json_object_too(ijfs: Ijfs, tmp_path: Path) -> None:
    result = ijfs("log", "--json", "-r", tmp_path / "none")
    assert result.code == 10
    assert result.err == ""
    check_error(result.json, "NoRepositoryError", 10)
    check_error(ijfs("nothing", "--json").json, "UsageError", 2)


def check_error(data: dict[str, object], kind: str, code: int) -> None:
    assert data["ijfs"] == 1
    error = data["error"]
    assert isinstance(error, dict)
    check({"ijfs": 1, **error}, "error")
    assert (error["type"], error["exit_code"]) == (kind, code)


def test_json_after_a_double_dash_belongs_to_the_program(ijfs: Ijfs, tmp_path: Path) -> None:
    result = ijfs("-r", tmp_path / "none", "run", "--", "tool", "--json")
    assert result.code == 10
    assert result.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IjfsError("plain"), 1),
        (PartialError("some"), 3),
        (LockedError("held"), 11),
        (PreflightError("no"), 12),
        (TargetDiedError("gone"), 13),
        (StorageError("full"), 1),
        (OSError(28, "No space left on device", "/x"), 1),
        (ExceptionGroup("several", [LockedError("held")]), 11),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_failure_becomes_a_sentence_and_its_exit_code(
    ijfs: Ijfs, repo: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    import ijfs.cli.verbs.stats as module

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(module.App, "repository", fail)
    result = ijfs("stats")
    assert result.code == code
    assert result.err.startswith("ijfs: ")
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback(ijfs: Ijfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IJFS_DEBUG", "1")
    assert "Traceback" in ijfs("-r", tmp_path / "none", "log").err


def test_the_repository_is_the_option_then_the_variable_then_the_data_directory(
    ijfs: Ijfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert ijfs("init", "--json").json["path"] == str(tmp_path / "xdg" / "ijfs")
    monkeypatch.setenv("IJFS_REPO", str(tmp_path / "var"))
    assert ijfs("init", "--json").json["path"] == str(tmp_path / "var")
    assert ijfs("init", "--json", "-r", tmp_path / "opt").json["path"] == str(tmp_path / "opt")
    assert ijfs("-r", tmp_path / "before", "--json", "init").json["path"] == str(tmp_path / "before")
    assert ijfs("init", tmp_path / "named", "--json").json["path"] == str(tmp_path / "named")


def test_init_refuses_a_directory_with_something_in_it(ijfs: Ijfs, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    result = ijfs("init", tmp_path / "full")
    assert result.code == 1
    assert "not an empty directory" in result.err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_quiet_prints_nothing_but_errors(ijfs: Ijfs, repo: Path) -> None:
    assert ijfs("log", "-q").out == ""
    assert ijfs("branch", "-q", "x").err.startswith("ijfs: ")


def test_a_repository_of_the_future_is_refused_with_10(ijfs: Ijfs, repo: Path) -> None:
    marker = next(p for p in repo.iterdir() if p.is_file() and b"version" in p.read_bytes())
    marker.write_bytes(re.sub(rb"version: \d+", b"version: 99", marker.read_bytes()))
    result = ijfs("log")
    assert result.code == 10
    assert "99" in result.err


def test_help_starts_without_what_only_verbs_need() -> None:
    code = (
        "import sys; from ijfs.cli.main import invoke; invoke(['--help']);"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


LOG_LOADS = """
    ijfs ijfs.cli ijfs.cli.app ijfs.cli.entry ijfs.cli.main ijfs.cli.output ijfs.cli.params ijfs.cli.passphrases
    ijfs.cli.text ijfs.cli.verbs ijfs.cli.verbs.log ijfs.cli.views ijfs.drawing ijfs.drawing.words ijfs.history
    ijfs.history.snapshots ijfs.settings ijfs_engine ijfs_engine._native ijfs_engine._native.copies
    ijfs_engine._native.index_walk ijfs_engine.errors ijfs_engine.format ijfs_engine.format.crypt
    ijfs_engine.format.frames ijfs_engine.format.place ijfs_engine.format.records ijfs_engine.format.row
    ijfs_engine.remote ijfs_engine.remote.remotes ijfs_engine.remote.stored_names ijfs_engine.repository
    ijfs_engine.storage ijfs_engine.storage.asking ijfs_engine.storage.directory ijfs_engine.storage.disk
    ijfs_engine.storage.elsewhere ijfs_engine.storage.frame_scan ijfs_engine.storage.index
    ijfs_engine.storage.index_file ijfs_engine.storage.index_pages ijfs_engine.storage.index_stamp
    ijfs_engine.storage.journal ijfs_engine.storage.known_damage ijfs_engine.storage.listed
    ijfs_engine.storage.locks ijfs_engine.storage.names ijfs_engine.storage.object_store
    ijfs_engine.storage.open_repository ijfs_engine.storage.ordering ijfs_engine.storage.pack
    ijfs_engine.storage.pins ijfs_engine.storage.refs ijfs_engine.storage.reserve
    ijfs_engine.storage.sealed_content ijfs_engine.util
    ijfs_engine.util.buffers ijfs_engine.util.io_wait ijfs_engine.util.per_thread ijfs_engine.util.pipeline
    ijfs_engine.util.words
"""
"""What of ours `ijfs log` may load. Each takes it 0.3 ms: who adds one has a reason, or loads it where it is used."""

NEEDLESS = {
    "concurrent.futures",
    "dataclasses",
    "hashlib",
    "json",
    "logging",
    "rich",
    "secrets",
    "shutil",
    "subprocess",
    "trio",
}


def loaded(*argv: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    code = (
        "import atexit, sys;"
        "atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr));"
        "from ijfs.cli.entry import main; main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_the_version_is_said_before_anything_is_loaded() -> None:
    found = loaded("--version")
    assert {name for name in found if name.startswith("ijfs")} == {"ijfs", "ijfs.cli", "ijfs.cli.entry"}
    assert not found & {"click", "msgspec", "inspect", "dataclasses"}


def test_a_verb_that_only_looks_loads_no_more_than_it_needs(repo: Path) -> None:
    """`ijfs log` takes as long as its modules: what writes, makes threads, sockets and JSON is loaded by its users."""
    found = loaded("-r", str(repo), "log")
    assert {name for name in found if name.startswith("ijfs")} <= set(LOG_LOADS.split())
    assert not found & {*NEEDLESS, "socket"}


def test_a_reader_that_leaves_early_ends_it_quietly(repo: Path) -> None:
    script = f"{' '.join(COMMAND)} --help | head -1; echo ${{PIPESTATUS[0]}}; true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_output_to_a_closed_pipe_exits_141_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


SAYING = [
    ["log"],
    ["log", "--json"],
    ["branch", "--json"],
    ["log", "nothing", "--json"],
    ["completion", "bash"],
    ["--help"],
    ["help"],
    ["--version"],
    ["gc", "--help"],
]


@pytest.mark.parametrize("argv", SAYING)
def test_a_standard_output_that_takes_nothing_is_said_in_a_sentence(repo: Path, argv: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ijfs: cannot write to standard output: ") or "nothing" in argv
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("argv", SAYING)
def test_a_standard_output_that_is_closed_is_said_in_a_sentence(repo: Path, argv: list[str]) -> None:
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    shown = subprocess.run(
        ["bash", "-c", '"$@" >&-', "-", *COMMAND, *argv], stderr=subprocess.PIPE, text=True, check=False
    )
    assert shown.returncode == 1
    assert "bad file descriptor" in shown.stderr or "nothing" in argv
    assert "Traceback" not in shown.stderr
    assert "unexpected" not in shown.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_other_streams_that_are_closed_change_no_exit_code(repo: Path, redirection: str) -> None:
    for argv, code in ((["log", "-q"], 0), (["log", "nothing"], 1)):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "-", *COMMAND, *argv], stdout=subprocess.DEVNULL, check=False
        )
        assert done.returncode == code, argv


def unread(pipe: IO[bytes] | None) -> int:
    """Bytes that were written into a pipe and that nobody has read yet."""
    assert pipe is not None
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "ijfs_engine", "atexit"])
def test_a_signal_during_the_imports_or_at_the_end_is_said_and_shows_no_traceback(
    tmp_path: Path, module: str, number: signal.Signals
) -> None:
    """A module that sends its own process a signal while it is imported; one more comes when all is done."""
    interrupt = f"import os, signal; os.kill(os.getpid(), {int(number)})\n"
    if module == "atexit":
        at_exit = f"import atexit, os, signal; atexit.register(os.kill, os.getpid(), {int(number)})\n"
        (tmp_path / "sitecustomize.py").write_text(at_exit)
    else:
        (tmp_path / f"{module}.py").write_text(interrupt)
    done = subprocess.run(
        [*COMMAND, "log"],
        env={**os.environ, "PYTHONPATH": os.fspath(tmp_path), "IJFS_REPO": os.fspath(tmp_path / "none")},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode in (-number, 128 + number)
    assert "Traceback" not in done.stderr
    said = ("before anything was begun", "nothing was left half done", "no ijfs repository")
    assert sum(done.stderr.count(words) for words in said) == 1, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_verb_ends_with_the_code_shells_expect(
    repo: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "exec", "nobody", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )
    assert process.stdin is not None
    process.stdin.write(b"x")
    process.stdin.flush()
    assert eventually(lambda: unread(process.stdin) == 0), "it does not read its standard input"
    process.send_signal(number)
    out, err = process.communicate(timeout=patient(20))
    assert process.returncode == code
    assert out == b""
    assert b"Traceback" not in err
    assert err.count(b"nothing was left half done") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(ijfs: Ijfs, shell: str) -> None:
    data = ijfs("completion", shell, "--json").json
    check(data, "completion")
    assert "_IJFS_COMPLETE" in data["script"]


# What a person does: loads the script, types, and asks. Each prints one candidate a line.
_COMPLETE = {
    "bash": """
eval "$(ijfs completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
complete -p ijfs | grep -q _ijfs_completion || exit 9
_ijfs_completion ijfs "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "zsh": """
autoload -U compinit; compinit -u -d "$ZDOTDIR/dump"
eval "$(ijfs completion zsh)"
[[ ${_comps[ijfs]} == _ijfs_completion ]] || exit 9
compadd() { local i; for i in "$@"; do [[ $i == -* ]] || print -r -- "$i"; done }
_describe() {
    local name=$argv[-1] found; [[ $1 == -V ]] && name=$3
    found=(${(P)name}); print -rl -- ${found%%:*}
}
words=("$@"); CURRENT=$#
_ijfs_completion
""",
    "fish": """
ijfs completion fish | source
complete -C "$argv" | string split -f 1 \\t
true
""",
}


@pytest.mark.parametrize("shell", sorted(_COMPLETE))
def test_a_real_shell_completes_verbs_options_and_names(repo: Path, tmp_path: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "tree").mkdir()
    subprocess.run([*COMMAND, "import", str(tmp_path / "tree"), "--branch", "laboratory"], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ijfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "bin" / "ijfs").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    env |= {"ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def complete(*words: str) -> list[str]:
        script = [_COMPLETE[shell], *([] if shell == "fish" else ["-"])]
        typed = [" ".join(words)] if shell == "fish" else list(words)
        done = subprocess.run(
            [program, "-c", *script, *typed], env=env, capture_output=True, text=True, timeout=patient(60), check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("ijfs", "rest") == ["restore"]
    assert "--dry-run" in complete("ijfs", "gc", "--d")
    assert complete("ijfs", "show", "labo") == ["laboratory"]
    assert complete("ijfs", "show", "nothing-of") == []


def test_completion_of_verbs_works_without_a_repository() -> None:
    env = {**os.environ, "_IJFS_COMPLETE": "bash_complete", "COMP_WORDS": "ijfs re", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, check=False)
    assert "plain,restore" in done.stdout.splitlines()


def test_the_version_is_the_distributions(ijfs: Ijfs) -> None:
    assert re.fullmatch(r"ijfs \d+\.\d+\.\d+\S*\n", ijfs("--version").out)


def test_the_sections_of_the_help_name_each_verb_once() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) == len(cli.list_commands(click.Context(cli)))


def test_json_output_is_one_line_in_a_pipe(ijfs: Ijfs, repo: Path) -> None:
    out = ijfs("log", "--json").out
    assert out.count("\n") == 1
    assert json.loads(out) == {"ijfs": 1, "verb": "log", "snapshots": []}


def test_a_broken_installation_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "ijfs_engine").mkdir()
    (tmp_path / "ijfs_engine" / "__init__.py").write_text("this is no Python\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ijfs.cli.main import main; main(['log'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ijfs: unexpected SyntaxError")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "fails", ["import ijfs_engine._native.nothing", "from ijfs_engine._native import nothing", "import ijfs.nothing"]
)
def test_a_compiled_part_that_is_missing_is_built_and_no_fault(fails: str) -> None:
    with pytest.raises(ImportError) as caught:
        exec(fails)
    said = failure.explain(caught.value)
    assert said.hint == failure.NOT_BUILT == NOT_BUILT
    assert said.exit_code == 1
    assert "nothing" in said.message


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (ImportError("part.so: cannot open shared object file: Too many open files", name="ijfs.part"), "ulimit -n"),
        (ImportError("part.so: failed to map segment from shared object", name="ijfs.part"), "ulimit -v"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ijfs(error: BaseException, hint: str) -> None:
    said = failure.explain(error)
    assert said.type == "SystemError"
    assert hint in str(said.hint)


def test_a_compiled_part_that_is_older_than_its_source_is_built_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, source = tmp_path / "part.cpython-311.so", tmp_path / "part.pyx"
    for at, file in enumerate((source, built)):
        file.write_text("")
        os.utime(file, (2e9 + at, 2e9 + at))
    part = types.ModuleType("ijfs_engine._native.part")
    part.__file__ = str(built)
    monkeypatch.setitem(sys.modules, part.__name__, part)
    error = AttributeError("'BulkRead' object has no attribute 'planned'")
    monkeypatch.setattr(failure, "_older_than_source", partial(failure._older_than_source, [part.__name__]))
    assert failure.explain(error).type == "InternalError"
    os.utime(source, (2e9 + 9, 2e9 + 9))
    said = failure.explain(error)
    assert "ijfs_engine._native.part is older" in said.message
    assert "make setup" in str(said.hint)


def test_a_keeper_that_a_compiled_part_was_missing_for_says_so(tmp_path: Path) -> None:
    paths = InstancePaths(tmp_path / "half")
    paths.root.mkdir(parents=True)
    here, there = socket.socketpair()
    with here, there:
        for last, hint in (
            ("ModuleNotFoundError: No module named 'ijfs.live.pager.filling'", NOT_BUILT),
            ("ImportError: cannot import name 'bulk' from 'ijfs_engine._native' (/x/__init__.py)", NOT_BUILT),
            ("ModuleNotFoundError: No module named 'msgspec'", None),
        ):
            paths.keeper_log.write_text(f"Traceback\n{last}\n")
            assert KeeperClient(here, paths)._broken().hint == hint


ROOT = Path(__file__).parents[2]
# `ijfs repository` is the first line of a repository's format file.
CITED = re.compile(r"`ijfs ((?!repository`)[a-z]+(?: [^`\n]*)?)`")


def _cited() -> list[tuple[str, str]]:
    """Every `ijfs …` in backticks that hints, docstrings and the documents show a user."""
    files = [
        *ROOT.glob("ijfs/**/*.py"),
        *ROOT.glob("engine/ijfs_engine/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "README.md",
    ]
    return [(path.name, match) for path in files for match in CITED.findall(path.read_text())]


def _options(word: str) -> list[str]:
    """`-it` is two of them."""
    return [f"-{letter}" for letter in word[1:]] if re.fullmatch(r"-[a-z]{2,}", word) else [word]


def test_every_command_that_a_hint_or_a_document_shows_exists_with_its_options() -> None:
    wrong = []
    for where, line in _cited():
        words = line.split(" -- ")[0].split(" | ")[0].split()
        command = cli.get_command(click.Context(cli), words[0])
        if isinstance(command, click.Group) and len(words) > 1:
            names = [n for n in words[1].split("|") if n.isalpha() and n.islower()]
            wrong += [(where, line) for n in names if n not in command.commands]
            command = command.commands.get(words[1], command)
        if command is None:
            wrong.append((where, line))
            continue
        if command.context_settings.get("ignore_unknown_options"):
            continue  # another program's options come behind its own
        known = {o for p in command.get_params(click.Context(command)) for o in (*p.opts, *p.secondary_opts)} | {
            "--help"
        }
        given = (o for word in words[1:] for part in word.split("|") for o in _options(part.strip("[]").split("=")[0]))
        wrong += [(where, line) for o in given if re.fullmatch(r"--?[a-z][a-z-]*", o) and o not in known]
    assert wrong == []
