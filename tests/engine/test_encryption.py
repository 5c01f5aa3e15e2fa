"""Encrypted repositories: nothing in plain on the disk, nothing altered that is not noticed, keys that come and go."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cryptkit
import msgspec
import pytest
from blake3 import blake3
from cryptkit import FILES, MARKER, PASSPHRASE, given, make
from storekit import contents, damage, frame_of, save

from ijfs_engine import (
    CorruptError,
    IjfsError,
    LockedError,
    LockedRepositoryError,
    Repository,
    Snapshot,
    StorageError,
    UnknownFormatError,
    export_tree,
    import_directory,
)
from ijfs_engine._native.unpack import chunk_ids, hash_widths
from ijfs_engine.format.frames import HEADER_SIZE, chunk_id
from ijfs_engine.maintenance import keys as key_verbs
from ijfs_engine.storage import disk, key_files, unlocking

pytest.importorskip("cryptography")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(key_files, "MEMORY_KIB", 64)
    monkeypatch.setattr(key_files, "_PASSES", 1)
    with given(PASSPHRASE):
        yield


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Repository]:
    with make(tmp_path / "sealed") as repository:
        yield repository


def reopened(repository: Repository) -> Repository:
    """Opened anew with what the environment says."""
    repository.close()
    unlocking._rings.clear()
    return Repository.open(repository.path)


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def assert_no_plaintext(path: Path) -> None:
    for file in files_of(path):
        assert b"MARKER" not in file.read_bytes(), file


def test_what_is_saved_comes_back(sealed: Repository) -> None:
    saved = save(sealed, FILES, branch="main", message="hello")
    sealed.refs.set_tag("v1", saved.id)
    with reopened(sealed) as repository:
        assert contents(repository, repository.resolve("main")) == FILES
        assert repository.refs.tags() == {"v1": saved.id}
        assert repository.snapshot(saved.id).message == "hello"
        assert [change.name for change in repository.refs.log()] == ["tag/v1", "branch/main"]
        assert repository.stats().format_version == 2


def test_large_files_come_back_by_the_compiled_reader(sealed: Repository, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    noise = random.Random(7).randbytes(3_000_000)
    (source / "noise").write_bytes(noise)
    (source / "text").write_bytes(b"the same words again, " * 100_000)
    first = import_directory(sealed, source, branch="main")
    (source / "noise").write_bytes(noise[:2_000_000] + b"changed" + noise[2_000_007:])
    second = import_directory(sealed, source, branch="main", parents=[first.id])
    with reopened(sealed) as repository:
        export_tree(repository.reader(), repository.snapshot(second.id).root, target)
        assert (target / "files/noise").read_bytes() == (source / "noise").read_bytes()
        assert (target / "files/text").read_bytes() == (source / "text").read_bytes()
        assert repository.fsck().clean


def test_nothing_is_in_plain_on_the_disk(sealed: Repository, tmp_path: Path) -> None:
    first = save(sealed, FILES, branch="MARKER-branch", message="MARKER message")
    sealed.refs.set_tag("MARKER-tag", first.id)
    sealed.put_working_set(first.id, MARKER * 3)
    second = save(sealed, {"MARKER": MARKER * 5000}, parents=[first.id], branch="MARKER-branch")
    sealed.remotes.add("origin", f"file://{tmp_path}/bucket")
    sealed.remotes.push("origin", {"branch/MARKER-branch": second.id})
    sealed.refs.delete_tag("MARKER-tag")
    sealed.gc()
    assert sealed.fsck(repair=True).clean
    assert_no_plaintext(sealed.path)
    assert_no_plaintext(tmp_path / "bucket")
    assert sealed.remotes.working_set(second.id) is None


def test_the_same_bytes_have_other_ids_in_another_repository(sealed: Repository, tmp_path: Path) -> None:
    with make(tmp_path / "other") as other, Repository.init(tmp_path / "plain") as plain:
        roots = {save(one, FILES).root for one in (sealed, other, plain)}
    assert len(roots) == 3


def test_a_wrong_passphrase_and_none_are_a_sentence_each(sealed: Repository) -> None:
    sealed.close()
    with given("wrong"), pytest.raises(LockedRepositoryError, match="does not open"):
        Repository.open(sealed.path)
    with given(None), pytest.raises(LockedRepositoryError, match="nothing that opens it was given") as refused:
        Repository.open(sealed.path)
    assert "IJFS_PASSPHRASE" in str(refused.value.hint)
    assert refused.value.exit_code == 11


def test_lost_keys_are_said_plainly(sealed: Repository) -> None:
    sealed.close()
    shutil.rmtree(sealed.path / "keys")
    with given(PASSPHRASE), pytest.raises(LockedRepositoryError, match="lost: nothing in it can be read"):
        Repository.open(sealed.path)


def test_who_has_the_keys_in_memory_yet_can_make_a_new_one(sealed: Repository) -> None:
    save(sealed, FILES, branch="main")
    for file in files_of(sealed.path / "keys"):
        file.write_bytes(b"damaged")
    sealed.close()
    with Repository.open(sealed.path) as repository:
        repository.keyring().add_passphrase("new", PASSPHRASE)
    with given(PASSPHRASE), Repository.open(sealed.path) as repository:
        assert contents(repository, repository.resolve("main")) == FILES
        assert repository.keyring().damaged() == ["main.key"]


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_file_or_a_command_gives_the_passphrase(
    sealed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    save(sealed, FILES, branch="main")
    sealed.close()
    (tmp_path / "secret").write_text(PASSPHRASE + "\n")
    with given(None):
        if way == "file":
            monkeypatch.setenv("IJFS_PASSPHRASE_FILE", str(tmp_path / "secret"))
        else:
            monkeypatch.setenv("IJFS_PASSPHRASE_COMMAND", f"cat '{tmp_path}/secret'")
        with Repository.open(sealed.path) as repository:
            assert repository.refs.branches()


def test_a_removed_key_opens_no_longer_and_the_last_one_stays(sealed: Repository) -> None:
    save(sealed, FILES, branch="main")
    sealed.keyring().add_passphrase("second", "battery staple")
    sealed.close()
    with given("battery staple"), Repository.open(sealed.path) as repository:
        assert contents(repository, repository.resolve("main")) == FILES
        repository.keyring().remove("main")
        with pytest.raises(IjfsError, match="the only key"):
            repository.keyring().remove("second")
    with given(PASSPHRASE), pytest.raises(LockedRepositoryError):
        Repository.open(sealed.path)


def test_two_changes_of_the_keys_at_once_leave_one_that_opens(
    sealed: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed.keyring().add_passphrase("second", "battery staple")
    begun, go_on = threading.Event(), threading.Event()
    plain = key_verbs.remove_key_file

    def slow(directory: Path, name: str) -> None:
        begun.set()
        assert go_on.wait(30)
        plain(directory, name)

    monkeypatch.setattr(key_verbs, "remove_key_file", slow)
    first = threading.Thread(target=lambda: sealed.keyring().remove("second"))
    first.start()
    assert begun.wait(30)
    try:
        ring = sealed.keyring()
        for change in (
            lambda: ring.remove("main"),
            lambda: ring.add_passphrase("third", "x"),
            lambda: ring.rotate(PASSPHRASE, keep_old=False),
        ):
            with pytest.raises(LockedError, match="another change of the keys"):
                change()
    finally:
        go_on.set()
        first.join()
    assert [file.name for file in sealed.keyring().all()] == ["main"]
    with pytest.raises(IjfsError, match="the only key"):
        sealed.keyring().remove("main", force=True)


def test_a_key_that_is_added_behind_a_rotation_opens_what_that_made(sealed: Repository) -> None:
    save(sealed, FILES, branch="main")
    with Repository.open(sealed.path) as other:
        old = sealed.keyring()._crypt.ring
        sealed.keyring().rotate(PASSPHRASE, keep_old=False)
        ring = other.keyring()
        ring._crypt.ring = old
        ring.add_passphrase("third", "third one")
    with given("third one"), reopened(sealed) as repository:
        assert contents(repository, repository.resolve("main")) == FILES


def test_the_key_that_opens_it_goes_only_when_another_one_did(sealed: Repository) -> None:
    sealed.keyring().add_passphrase("second", "battery staple")
    unlocking._made.clear()
    with reopened(sealed) as repository:
        with pytest.raises(IjfsError, match="nothing shows that the repository opens without main") as refused:
            repository.keyring().remove("main")
        assert "second" in str(refused.value.hint)
        repository.keyring().remove("main", force=True)
        assert [file.name for file in repository.keyring().all()] == ["second"]


def test_a_key_of_which_nothing_says_that_it_is_sound_is_not_the_one_to_stay(sealed: Repository) -> None:
    sealed.keyring().add_passphrase("second", "battery staple")
    for file in sealed.keyring().all():
        key_files.write_key_file(sealed.path / "keys", msgspec.structs.replace(file, check=b""))
    unlocking._made.clear()
    with pytest.raises(IjfsError, match="nothing shows"):
        sealed.keyring().remove("main")
    with given("battery staple"), reopened(sealed) as repository:
        repository.keyring().remove("main")


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_key_is_named_and_is_not_the_one_to_stay(sealed: Repository, cut: bool) -> None:
    sealed.keyring().add_passphrase("second", "battery staple")
    path = sealed.path / "keys/second.key"
    whole = path.read_bytes()
    for at in (40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert sealed.keyring().damaged() == ["second.key"], at
    (found,) = sealed.fsck(repair=True).damage
    assert (found.what, found.where) == ("key", "keys/second.key")
    with pytest.raises(IjfsError, match="the only key"):
        sealed.keyring().remove("main")
    sealed.keyring().remove("second")
    assert sealed.fsck().clean


def test_the_last_key_opens_it_where_only_its_check_is_wrong(sealed: Repository) -> None:
    (file,) = sealed.keyring().all()
    key_files.write_key_file(sealed.path / "keys", msgspec.structs.replace(file, check=b"wrong"))
    with reopened(sealed) as repository:
        assert not repository.keyring().all()
        with pytest.raises(IjfsError, match="no other key is left"):
            repository.keyring().remove("main")
        repository.keyring().add_passphrase("new", PASSPHRASE)
        repository.keyring().remove("main")


def test_an_age_identity_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(f"# made by a test\n{identity}\n")
    recipient = str(identity.to_public())
    with given(None):
        monkeypatch.setenv("IJFS_IDENTITY", str(tmp_path / "identity"))
        way = lambda ring: key_files.wrap_for_recipients(ring, "mine", [recipient])  # noqa: E731
        with Repository.init(tmp_path / "sealed", way_in=way) as repository:
            save(repository, FILES, branch="main")
            repository.keyring().rotate(None, keep_old=False)
        unlocking._rings.clear()
        with Repository.open(tmp_path / "sealed") as repository:
            assert contents(repository, repository.resolve("main")) == FILES


def test_a_rotation_seals_all_anew_and_drops_other_passphrases(sealed: Repository) -> None:
    save(sealed, FILES, branch="main")
    sealed.keyring().add_passphrase("second", "battery staple")
    before = {file: file.read_bytes() for file in files_of(sealed.path / "packs")}
    old = sealed.keyring()._crypt.ring
    done = sealed.keyring().rotate(PASSPHRASE, keep_old=False)
    assert (done.dropped, done.kept_old) == (["second"], False)
    assert not before.keys() & set(files_of(sealed.path / "packs"))
    with reopened(sealed) as repository:
        ring = repository.keyring()._crypt.ring
        assert set(ring.sealing) == {2}
        assert ring.root == old.root
        assert contents(repository, repository.resolve("main")) == FILES
        assert repository.fsck().clean


def test_a_rotation_that_is_killed_at_any_step_loses_nothing(sealed: Repository, tmp_path: Path) -> None:
    save(sealed, FILES, branch="main", message="first")
    sealed.close()
    command = [sys.executable, cryptkit.__file__, str(sealed.path), str(tmp_path / "work")]
    paths = [str(Path(cryptkit.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_who_kept_the_old_key_saves_with_the_new_one(sealed: Repository, tmp_path: Path) -> None:
    save(sealed, FILES, branch="main")
    with Repository.open(sealed.path) as other:
        other.keyring()._crypt.ring = sealed.keyring()._crypt.ring
        sealed.keyring().rotate(PASSPHRASE, keep_old=False)
        save(other, {"later": MARKER}, branch="later")
        other.refs.set_tag("t", other.resolve("later"))
    with reopened(sealed) as repository:
        assert contents(repository, repository.resolve("later")) == {"later": MARKER}
        assert repository.refs.tags()


def test_an_index_that_is_lost_is_rebuilt(sealed: Repository) -> None:
    first = save(sealed, FILES, branch="main", message="first")
    sealed.refs.set_tag("v1", first.id)
    sealed.close()
    shutil.rmtree(sealed.path / "index")
    (sealed.path / "format").unlink()
    with Repository.open(sealed.path, damaged=True) as repository:
        repository.fsck(repair=True)
    with reopened(sealed) as repository:
        assert repository.fsck().clean
        assert contents(repository, repository.resolve("v1")) == FILES
        assert [change.why for change in repository.refs.log("main")] == ["first"]


def _whatever(path: Path) -> str | None:
    """What a reader is told of an altered repository; None where all that it gets is right. Never wrong bytes."""
    try:
        with Repository.open(path) as repository:
            for name, ident in repository.refs.branches().items():
                assert contents(repository, ident) == FILES, name
            assert {change.why for change in repository.refs.log()} <= {"first", "tag"}
            damage = repository.fsck().damage
            return damage[0].message if damage else None
    except (CorruptError, StorageError, LockedRepositoryError, UnknownFormatError, IjfsError) as error:
        return str(error)


def test_no_flipped_bit_gives_wrong_bytes(sealed: Repository, tmp_path: Path) -> None:
    first = save(sealed, FILES, branch="main", message="first")
    sealed.refs.set_tag("v1", first.id)
    sealed.close()
    rng, told = random.Random(5), 0
    places = [file for file in files_of(sealed.path) if file.name not in ("lock.mdb", "reserve", "gc", "checked")]
    for number in range(60):
        copy = tmp_path / "copy"
        shutil.copytree(sealed.path, copy)
        file = copy / places[number % len(places)].relative_to(sealed.path)
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        told += _whatever(copy) is not None
        shutil.rmtree(copy)
    assert told > 30


def test_a_row_of_another_name_is_noticed(sealed: Repository) -> None:
    """Whoever can write the disk puts the sealed value of one branch under another."""
    one = save(sealed, {"a": b"one"}, branch="one")
    save(sealed, {"a": b"two"}, branch="two")
    crypt = sealed.index.crypt
    stored = {name: crypt.row_key(b"refs", name) for name in (b"branch/one", b"branch/two")}

    with sealed.index._environment.transaction(write=True) as txn:
        table = sealed.index._environment.tables[b"refs"]
        txn.put(stored[b"branch/two"], bytes(txn.get(stored[b"branch/one"], db=table)), db=table)
    with pytest.raises(CorruptError, match="altered"):
        sealed.refs.branches()
    with pytest.raises(CorruptError, match="altered"):
        sealed.resolve("two")
    assert sealed.resolve("one") == one.id


def test_a_feature_that_is_not_known_is_named(sealed: Repository) -> None:
    sealed.close()
    text = (sealed.path / "format").read_text()
    (sealed.path / "format").write_text(text.replace("encrypted", "encrypted teleport"))
    with pytest.raises(UnknownFormatError, match="teleport"):
        Repository.open(sealed.path)


def test_a_copy_there_and_back_is_the_same_snapshot(sealed: Repository, tmp_path: Path) -> None:
    with Repository.init(tmp_path / "plain") as plain, Repository.init(tmp_path / "back") as back:
        first = save(plain, FILES, branch="main", message="first")
        second = save(plain, {**FILES, "new": b"x" * 9000}, parents=[first.id], branch="main", message="second")
        plain.refs.set_tag("v1", first.id)
        refs = {"branch/main": second.id, "tag/v1": first.id}
        report = sealed.copy_from(plain, refs)
        assert contents(sealed, sealed.resolve("main~1")) == FILES
        assert sealed.snapshot(sealed.resolve("main")).message == "second"
        again = {name: report.snapshots[ident] for name, ident in refs.items()}
        back.copy_from(sealed, again)
        assert back.resolve("main") == second.id
        assert back.resolve("v1") == first.id
        assert sealed.copy_from(plain, refs).stored < 300
        assert sealed.fsck().clean


def test_a_rotation_that_finds_no_room_says_how_far_it_came(
    sealed: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = save(sealed, FILES, branch="main")

    def full(name: str) -> Callable[[disk.Step], None]:
        def refuse(step: disk.Step) -> None:
            if step.op == "write" and name in step.path:
                raise OSError(errno.ENOSPC, "No space left on device")

        return refuse

    monkeypatch.setattr(disk, "observer", full("/keys/"))
    with pytest.raises(StorageError, match="changing the key: No space left"):
        sealed.keyring().rotate(PASSPHRASE, keep_old=False)
    monkeypatch.setattr(disk, "observer", full(".pack"))
    with pytest.raises(StorageError, match="opens with the new key") as caught:
        sealed.keyring().rotate(PASSPHRASE, keep_old=False)
    monkeypatch.setattr(disk, "observer", None)
    assert "rotate again" in (caught.value.hint or "")
    assert not list((sealed.path / "keys").glob(".*.new"))
    assert contents(sealed, made.id) == FILES
    sealed.keyring().rotate(PASSPHRASE, keep_old=False)
    assert contents(sealed, made.id) == FILES
    assert sealed.fsck().clean


def test_a_copy_of_a_damaged_line_has_what_is_whole(sealed: Repository, tmp_path: Path) -> None:
    """A chunk of the second is damaged, and the record of the fourth; the fifth descends from both."""
    noise = os.urandom(9000)
    made: list[Snapshot] = []
    with Repository.init(tmp_path / "plain") as plain:
        for number, content in enumerate([b"zero", noise, b"two", b"three", b"four"]):
            parents = [made[-1].id] if made else []
            made.append(save(plain, {"a": content}, parents=parents, branch="main", message=str(number)))
        plain.refs.set_branch("second", made[1].id)
        plain.refs.set_tag("record", made[3].id)
        places = [frame_of(plain, chunk_id(noise[:4096])), frame_of(plain, made[3].id)]
    for path, offset in places:
        damage(path, offset + HEADER_SIZE + 1)
    with Repository.open(tmp_path / "plain") as plain:
        report = sealed.copy_from(
            plain, {"branch/main": made[4].id, "branch/second": made[1].id, "tag/record": made[3].id}
        )
        assert sealed.copy_from(plain, {"tag/record": made[3].id}).behind == {"tag/record": None}
    assert set(report.damaged) == {made[1].id, made[3].id}
    assert report.behind == {"branch/second": made[0].id, "tag/record": None}
    line = [sealed.snapshot(sealed.resolve(f"main~{back}")).message for back in range(3)]
    assert line == ["4", "2", "0"]
    assert sealed.resolve("second") == report.snapshots[made[0].id]
    assert sealed.fsck().clean


def test_a_copy_of_what_is_damaged_throughout_is_refused(sealed: Repository, tmp_path: Path) -> None:
    noise = os.urandom(4096)
    with Repository.init(tmp_path / "plain") as plain:
        only = save(plain, {"a": noise}, branch="main")
        path, offset = frame_of(plain, chunk_id(noise))
        damage(path, offset + HEADER_SIZE + 1)
        with pytest.raises(CorruptError):
            sealed.copy_from(plain, {"branch/main": only.id})
    assert "main" not in sealed.refs.branches()


def test_a_clone_opens_with_the_same_key_and_what_it_saves_comes_back(sealed: Repository, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    first = save(sealed, FILES, branch="main", message="first")
    sealed.put_working_set(first.id, b"pages")
    sealed.remotes.add("origin", url)
    sealed.remotes.push("origin", {"branch/main": first.id})
    unlocking._rings.clear()
    with Repository.init_like(tmp_path / "clone", url) as clone:
        clone.remotes.add("origin", url)
        clone.remotes.fetch("origin")
        assert contents(clone, clone.resolve("origin/main")) == FILES
        assert clone.working_set(first.id) == b"pages"
        clone.remotes.pull("origin")
        later = save(clone, {"later": MARKER * 40}, parents=[first.id], branch="main")
        clone.remotes.push("origin", {"branch/main": later.id})
        assert clone.fsck().clean
    sealed.remotes.pull("origin")
    assert contents(sealed, sealed.resolve("main")) == {"later": MARKER * 40}
    assert not sealed.remotes.fsck("origin").harm
    with given("wrong"), pytest.raises(LockedRepositoryError, match="does not open"):
        Repository.init_like(tmp_path / "none", url)
    assert not (tmp_path / "none").exists()


def test_a_tree_with_other_keys_or_none_is_refused(sealed: Repository, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    first = save(sealed, FILES, branch="main")
    sealed.remotes.add("origin", url)
    sealed.remotes.push("origin", {"branch/main": first.id})
    with Repository.init(tmp_path / "plain") as plain, make(tmp_path / "other") as other:
        for repository, why in ((plain, "is encrypted"), (other, "with other keys")):
            repository.remotes.add("origin", url)
            with pytest.raises(IjfsError, match=why):
                repository.remotes.fetch("origin")
        saved = save(plain, FILES, branch="main")
        plain.remotes.add("own", f"file://{tmp_path}/own")
        plain.remotes.push("own", {"branch/main": saved.id})
        other.remotes.add("own", f"file://{tmp_path}/own")
        with pytest.raises(IjfsError, match="is not encrypted"):
            other.remotes.push("own", {})


def test_an_altered_object_of_a_remote_is_named(sealed: Repository, tmp_path: Path) -> None:
    first = save(sealed, FILES, branch="main")
    sealed.remotes.add("origin", f"file://{tmp_path}/bucket")
    sealed.remotes.push("origin", {"branch/main": first.id})
    for pack in (tmp_path / "bucket/packs").glob("*[!x]"):
        if pack.suffix != ".index":
            data = bytearray(pack.read_bytes())
            data[200] ^= 1
            pack.write_bytes(data)
    assert sealed.remotes.fsck("origin").harm
    assert not sealed.remotes.fsck("origin", repair=True).left


@pytest.mark.parametrize("lanes", hash_widths())
def test_the_compiled_hash_takes_a_key_as_the_package_does(lanes: int) -> None:
    rng, key = random.Random(3), bytes(range(32))
    for size in (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3072, 7168, 31744, 65536, 262144):
        data = rng.randbytes(size)
        bounds = (0).to_bytes(8, "little") + size.to_bytes(8, "little")
        (found,) = chunk_ids(data, memoryview(bounds).cast("Q"), lanes, key)
        assert found == blake3(data, key=key).digest(), size
