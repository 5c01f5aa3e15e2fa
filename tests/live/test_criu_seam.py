"""CRIU's seam: its errors as sentences, its command found, the ranges it reads itself, the mounts a sandbox gets."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ijfs.live.criu import command as criu_command
from ijfs.live.criu import eager_pages
from ijfs.live.criu.log import error_lines, explain
from ijfs.live.errors import CriuMissingError, ProgramRefusedError, error_fields, rebuild
from ijfs.live.sandbox import volumes

LOG = """Warn  (criu/config.c:1063): --network-lock will be ignored in restore command
Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.012345)      2: Error (criu/files-reg.c:2210): File usr/lib/libfoo.so has bad size 900 (expect 1000)
(00.012400) Error (criu/cr-restore.c:2536): Restoring FAILED.
"""


def test_the_line_that_decided_is_found_and_put_into_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text(LOG)
    assert error_lines(log) == ["File usr/lib/libfoo.so has bad size 900 (expect 1000)"]
    error = explain("restore", log, "", 1)
    assert "usr/lib/libfoo.so is not as it was" in str(error)
    assert "CRIU: File usr/lib/libfoo.so has bad size" in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Can't open file root/x.dat on restore: No such file or directory", "root/x.dat, which the program has open"),
        ("Can't retrieve FDs from socket", "cannot save"),
        ("Can't dump ghost file /tmp/big of 999 size, increase limit", "/tmp/big"),
        ("Write 4096 to 3 failed: No space left on device", "no space left"),
        ("Can't lookup mount=18 for fd=-3 path=/anon_hugepage (deleted)", "no free huge pages"),
        ("Can't mmap shmem 0x2ebaf8: Cannot allocate memory", "no free huge pages"),
        ("something nobody has ever seen", "something nobody has ever seen"),
    ],
)
def test_known_and_unknown_lines_become_sentences_with_a_hint(line: str, words: str, tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(f"(00.1) Error (criu/x.c:1): {line}\n")
    error = explain("dump", log, "", 1)
    assert words in str(error)
    assert line in str(error)
    assert error.hint


def test_a_criu_that_says_nothing_is_quoted_with_what_there_is(tmp_path: Path) -> None:
    assert "cannot run" in str(explain("dump", tmp_path / "none", "cannot run\n", 1))
    assert "status 52" in str(explain("dump", tmp_path / "none", "", 52))


def test_the_loaders_complaint_of_a_library_is_no_reason_of_criu(tmp_path: Path) -> None:
    loader = (
        "ERROR: ld.so: object '/proc/self/fd/29' from LD_PRELOAD cannot be preloaded "
        "(cannot open shared object file): ignored.\n"
    )
    assert "ended with status -9" in str(explain("dump", tmp_path / "none", loader, -9))
    assert str(explain("dump", tmp_path / "none", f"cannot run\n{loader}", 1)).endswith(": cannot run")


def test_ijfs_criu_names_the_program_or_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\necho Version: 4.2.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(program))
    assert criu_command.find() == program
    assert criu_command.version(program) == (4, 2, 1)
    monkeypatch.setenv("IJFS_CRIU", str(tmp_path / "none"))
    with pytest.raises(CriuMissingError):
        criu_command.find()


entries = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 2, 4, 6])), max_size=12)


@given(entries)
def test_the_ranges_criu_reads_itself_are_those_of_a_page_by_page_model(entries: list[tuple[int, int]]) -> None:
    """Flags: 2 lazy, 4 present; 0 is the old form of present. Only present pages take room in the file."""
    pagemap = [(number * 100, pages, flags) for number, (pages, flags) in enumerate(entries)]
    wanted = set()
    at = 0
    for _, pages, flags in pagemap:
        present = flags == 0 or bool(flags & 4)
        for _ in range(pages if present else 0):
            if not flags & 2:
                wanted.add(at)
            at += 1
    ranges = list(eager_pages._merged(pagemap))
    covered = [page for start, end in ranges for page in range(start // 4096, end // 4096)]
    assert covered == sorted(wanted)
    assert all(left.end < right.start for left, right in itertools.pairwise(ranges))


MOUNTINFO = """22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:5 / /proc rw - proc proc rw
24 22 0:6 / /sys rw - sysfs sysfs rw
25 22 0:7 / /dev rw - devtmpfs devtmpfs rw
26 22 0:8 / /tmp rw - tmpfs tmpfs rw
27 22 254:16 / /home rw - ext4 /dev/vdb rw
28 27 254:32 / /home/data\\040sets ro - squashfs /dev/vdc ro
29 22 0:9 / /mnt/cloud rw - fuse.sshfs host: rw
30 22 254:0 /hosts {file} rw - ext4 /dev/vda rw
31 22 254:48 / /run/media rw - ext4 /dev/vdd rw
32 22 254:64 / /srv rw - xfs /dev/vde rw
33 32 0:10 / /srv rw - tmpfs tmpfs rw
"""


def test_the_hosts_real_mounts_become_volumes_and_single_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hosts"
    file.touch()
    monkeypatch.setattr(Path, "is_dir", lambda path: path != file)
    monkeypatch.setattr(volumes, "OWN", ("/proc", "/sys", "/dev", "/run"))
    found, copies = volumes.choose("/home", Path("/repo"), MOUNTINFO.format(file=file))
    assert [(volume.key, volume.path, volume.kind) for volume in found] == [
        ("v0", "/tmp", "overlay"),
        ("v1", "/home", "overlay"),
        ("v2", "/home/data sets", "overlay"),
    ]
    assert copies == (file,)


@pytest.mark.parametrize(
    ("kind", "below", "expected"),
    [("tmpfs", "/", ["/var/tmp"]), ("overlay", "/", []), ("fuse.sshfs", "/", []), ("tmpfs", "/some/base", [])],
)
def test_a_scratch_directory_that_is_a_mount_becomes_a_volume_where_an_overlay_can_stand_on_it(
    kind: str, below: str, expected: list[str]
) -> None:
    lines = f"22 1 254:0 / / rw - ext4 /dev/vda rw\n26 22 0:8 / /var/tmp rw - {kind} none rw\n"
    found, _ = volumes.choose("/usr", Path("/repo"), lines, below=Path(below))
    assert [volume.path for volume in found if volume.path != "/usr"] == expected


def test_a_working_directory_below_tmp_becomes_a_volume(tmp_path: Path) -> None:
    found, _ = volumes.choose(str(tmp_path), Path("/repo"), "22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    assert [volume.path for volume in found] == [str(tmp_path)]
    found, _ = volumes.choose("/usr", Path("/repo"), "22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    assert found == ()


def test_what_a_program_cannot_do_without_is_shown_where_tmp_would_hide_it(tmp_path: Path) -> None:
    environment, inside, elsewhere = tmp_path / "checkout", tmp_path / "checkout/sub", Path("/usr/lib")
    inside.mkdir(parents=True)
    root = "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
    found, _ = volumes.choose(str(inside), Path("/repo"), root, [environment, elsewhere, Path("/tmp")])
    assert [volume.path for volume in found] == [str(environment)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("(00.1) Error (criu/namespaces.c:1): Can't dump nested pid namespace for 1", "namespace of its own"),
        ("(00.1) Error (criu/cr-restore.c:1): Can't restore sub-task in NS (cflags 40000000)", "namespace of its own"),
        ("(00.1) Error (criu/files-reg.c:1): Unknown shit 100600 (/secretmem (deleted))", "secret memory"),
        ("(00.1) Error (criu/cr-dump.c:1): Can't get rlimit 0: Operation not permitted", "CAP_SYS_RESOURCE"),
        ("(00.1) Error (criu/pipes.c:1): OOM storing pipe", "1024 pipes"),
        ("(00.1) Error (criu/files.c:1): Can't lookup mount=189 for fd=3 path=/ijq", "/ijq"),
        (
            "(00.1) Error (criu/files.c:1): Can't dump file 3 of that type [600] (anon anon_inode:[userfaultfd])",
            "has [userfaultfd] open (file descriptor 3)",
        ),
        ("(00.1) Error (criu/files.c:1): Can't dump file 11 of that type [20666] (chr 195:255)", "chr 195:255"),
        ("(00.1) Error (criu/parasite-syscall.c:1): Unseizable non-zombie 1 found, state S, err -1/10", "traces it"),
    ],
)
def test_what_the_program_has_is_said_to_be_its_own_with_exit_code_12(line: str, words: str, tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(line + "\n")
    error = explain("dump", log, "", 1)
    assert isinstance(error, ProgramRefusedError)
    assert error.exit_code == 12
    assert words in str(error)
    assert type(rebuild(error_fields(error))) is ProgramRefusedError, "also across a keeper's socket"


def test_lines_of_the_code_that_criu_runs_inside_the_program_are_read(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text("(00.051) pie: 2: Error (criu/pie/restorer.c:1): Can't create posix timer - 0: -22\n")
    assert error_lines(log) == ["Can't create posix timer - 0: -22"]
    assert "timer" in str(explain("restore", log, "", 1))


def test_a_process_is_called_by_its_name_while_it_lives(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(f"(00.1) Error (criu/namespaces.c:1): Can't dump nested uts namespace for {os.getpid()}\n")
    name = Path("/proc/self/comm").read_text().strip()
    assert f"process {os.getpid()} ({name}) runs in a uts namespace" in str(explain("dump", log, "", 1))
