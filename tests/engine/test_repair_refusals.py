"""What fsck --repair may not take for damage: wrong keys, a wrong file `format`, the journal of another repository, and
what the system refuses for now."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import lmdb
import pytest
from cryptkit import FILES, PASSPHRASE, given, make
from storekit import contents, save

from ijfs_engine import CorruptError, LockedRepositoryError, Repository, StorageError
from ijfs_engine.format.place import Place
from ijfs_engine.storage import disk, index_pages, unlocking
from ijfs_engine.storage.index import OBJECTS
from ijfs_engine.storage.pack import DATA_PACK, encode_pack_header, pack_path


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("ijfs_engine.storage.key_files.MEMORY_KIB", 64)
    monkeypatch.setattr("ijfs_engine.storage.key_files._PASSES", 1)
    with given(PASSPHRASE):
        yield


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return _saved(make(tmp_path / "sealed"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return _saved(Repository.init(tmp_path / "plain"))


def _saved(repository: Repository) -> Path:
    with repository:
        save(repository, FILES, branch="main")
        return repository.path


def _state(path: Path) -> dict[str, bytes]:
    """All files whose bytes matter: what locks are made of comes and goes."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in ("lock.mdb", "checked"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _repair(path: Path) -> list[str]:
    unlocking._rings.clear()
    with Repository.open(path, damaged=True) as repository:
        return repository.fsck(repair=True).repaired


def _is_whole(path: Path) -> bool:
    unlocking._rings.clear()
    with Repository.open(path) as repository:
        return repository.fsck().clean and contents(repository, repository.resolve("main")) == FILES


@pytest.mark.parametrize("lost", ["", "index", "journal"])
def test_with_the_keys_of_another_repository_nothing_is_changed(sealed: Path, tmp_path: Path, lost: str) -> None:
    other = _saved(make(tmp_path / "other"))
    own = (sealed / "keys/main.key").read_bytes()
    shutil.copy(other / "keys/main.key", sealed / "keys/main.key")
    if lost == "index":
        shutil.rmtree(sealed / "index")
    elif lost:
        (sealed / lost).unlink()
    before = _state(sealed)
    with pytest.raises(LockedRepositoryError, match="open nothing in it"):
        _repair(sealed)
    assert _state(sealed) == before
    (sealed / "keys/main.key").write_bytes(own)
    _repair(sealed)
    assert _is_whole(sealed)


def test_a_check_with_wrong_keys_names_them_and_no_damage(sealed: Path, tmp_path: Path) -> None:
    other = _saved(make(tmp_path / "other"))
    shutil.copy(other / "keys/main.key", sealed / "keys/main.key")
    unlocking._rings.clear()
    with Repository.open(sealed) as repository, pytest.raises(LockedRepositoryError, match="open nothing in it"):
        repository.fsck()


def test_keys_from_before_a_rotation_repair_nothing(sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed / "keys", tmp_path / "old")
    with Repository.open(sealed) as repository:
        repository.keyring().rotate(PASSPHRASE, keep_old=False)
    shutil.copytree(sealed / "keys", tmp_path / "new")
    shutil.copytree(tmp_path / "old", sealed / "keys", dirs_exist_ok=True)
    before = _state(sealed)
    with pytest.raises(LockedRepositoryError, match="before a rotation"):
        _repair(sealed)
    assert _state(sealed) == before
    shutil.copytree(tmp_path / "new", sealed / "keys", dirs_exist_ok=True)
    assert _is_whole(sealed)


@pytest.mark.parametrize("how", ["another's", "no features", "lost"])
def test_a_format_file_that_says_nothing_of_encryption_is_refused_and_mended(
    sealed: Path, plain: Path, how: str
) -> None:
    right = (sealed / "format").read_bytes()
    texts = {
        "another's": (plain / "format").read_bytes(),
        "no features": right.replace(b"version: 2", b"version: 1").replace(b"features: encrypted\n", b""),
    }
    if how == "lost":
        (sealed / "format").unlink()
    else:
        (sealed / "format").write_bytes(texts[how])
        with pytest.raises(CorruptError, match="is encrypted, and its file `format`"):
            Repository.open(sealed)
    _repair(sealed)
    assert (sealed / "format").read_bytes() == right
    assert _is_whole(sealed)


def test_without_format_and_keys_sealed_packs_are_no_empty_repository(sealed: Path, plain: Path) -> None:
    shutil.copy(plain / "format", sealed / "format")
    (sealed / "keys").rename(sealed.parent / "keys")
    before = _state(sealed)
    with pytest.raises(CorruptError, match="is encrypted"):
        Repository.open(sealed)
    with pytest.raises(LockedRepositoryError, match="all keys"):
        _repair(sealed)
    assert _state(sealed) == before


def test_a_plain_repository_with_the_format_file_of_an_encrypted_one_is_mended(sealed: Path, plain: Path) -> None:
    right = (plain / "format").read_bytes()
    shutil.copy(sealed / "format", plain / "format")
    _repair(plain)
    assert (plain / "format").read_bytes() == right
    assert _is_whole(plain)


def test_a_journal_without_lines_has_no_say_beside_packs(sealed: Path, plain: Path) -> None:
    """The packs tell by themselves that they are sealed."""
    shutil.copy(plain / "format", sealed / "format")
    (sealed / "journal").unlink()
    with pytest.raises(CorruptError, match="is encrypted"):
        Repository.open(sealed)
    _repair(sealed)
    assert _is_whole(sealed)


def _names(path: Path) -> tuple[list[bytes], dict[str, bytes]]:
    with Repository.open(path) as repository:
        return sorted(one.id for one in repository.snapshots()), dict(repository.refs.branches())


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("of", ["plain", "sealed"])
def test_the_journal_of_another_repository_is_not_replayed(
    request: pytest.FixtureRequest, tmp_path: Path, of: str, more: int
) -> None:
    path: Path = request.getfixturevalue(of)
    names = _names(path)
    foreign = _foreign_journal(tmp_path, more=more, encrypted=of == "sealed")
    (path / "journal").write_bytes(foreign)
    assert _names(path) == names
    with Repository.open(path) as repository, pytest.raises(CorruptError, match="that of another repository"):
        save(repository, {"new": b"new"}, branch="main")
    assert (path / "journal").read_bytes() == foreign
    done = _repair(path)
    assert any("kept the journal of another repository" in one for one in done)
    assert [kept.read_bytes() for kept in path.glob("journal.foreign-*")] == [foreign]
    assert not list(path.glob("index.damaged-*"))
    assert _names(path) == names
    assert _is_whole(path)


def test_beside_another_repositorys_journal_no_save_begins(plain: Path, tmp_path: Path) -> None:
    (plain / "journal").write_bytes(_foreign_journal(tmp_path, more=0, encrypted=False))
    packs = sorted((plain / "packs").iterdir())
    with Repository.open(plain) as repository, pytest.raises(CorruptError, match="that of another repository"):
        repository.begin()
    assert sorted((plain / "packs").iterdir()) == packs


def test_beside_another_repositorys_journal_what_can_be_read_is_stored_anew(plain: Path, tmp_path: Path) -> None:
    with Repository.open(plain) as repository:
        ident = repository.resolve("main")
        with repository.index.read() as view:
            row = view.get(OBJECTS, ident)
        assert row is not None
        place = Place.decode(row)
    pack = pack_path(plain / "packs", place.pack)
    data = bytearray(pack.read_bytes())
    data[place.offset + 52] ^= 1  # of the checksum over the payload: a reader does without
    pack.write_bytes(data)
    (plain / "journal").write_bytes(_foreign_journal(tmp_path, more=3, encrypted=False))
    done = _repair(plain)
    assert any("stored 1 damaged frame anew" in one for one in done), done
    assert _is_whole(plain)


def test_a_pack_with_another_id_does_not_outvote_the_others_and_the_journal(plain: Path, tmp_path: Path) -> None:
    right = (plain / "format").read_bytes()
    with Repository.open(plain) as repository:
        for name in ("one", "two"):
            save(repository, {name: name.encode()}, branch=name)
    with Repository.init(tmp_path / "other") as other:
        (plain / "packs/00000009.pack").write_bytes(encode_pack_header(9, DATA_PACK, other.directory.id))
        shutil.copy(other.path / "format", plain / "format")
    _repair(plain)
    assert (plain / "format").read_bytes() == right
    assert _is_whole(plain)


def test_beside_another_repositorys_journal_a_lost_index_is_built_from_the_packs(plain: Path, tmp_path: Path) -> None:
    listed, _ = _names(plain)
    foreign = _foreign_journal(tmp_path, more=3, encrypted=False)
    (plain / "journal").write_bytes(foreign)
    shutil.rmtree(plain / "index")
    _repair(plain)
    found, branches = _names(plain)
    assert found == listed
    assert set(branches.values()) == set(listed)
    assert [kept.read_bytes() for kept in plain.glob("journal.foreign-*")] == [foreign]


def _foreign_journal(tmp_path: Path, *, more: int, encrypted: bool) -> bytes:
    repository = make(tmp_path / "foreign") if encrypted else Repository.init(tmp_path / "foreign")
    with repository:
        for number in range(more + 1):
            save(repository, {"other": bytes([number])}, branch="main")
        return (repository.path / "journal").read_bytes()


def _errors() -> list[Exception]:
    codes = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EFBIG)
    of_lmdb = lmdb.MemoryError(f"/index: {os.strerror(errno.ENOMEM)}")
    short = [MemoryError(), RuntimeError("can't start new thread")]
    return [*(OSError(code, os.strerror(code)) for code in codes), of_lmdb, *short]


@pytest.mark.parametrize("error", _errors(), ids=repr)
def test_an_index_that_the_system_does_not_open_for_now_is_not_set_aside(
    plain: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = _state(plain)
    with monkeypatch.context() as patch:
        patch.setattr("lmdb.open", _refuse(error))
        with pytest.raises(StorageError, match="does not open") as caught:
            _repair(plain)
    assert "damaged" not in (caught.value.hint or "")
    assert _state(plain) == before
    assert _is_whole(plain)


@pytest.mark.parametrize("where", ["index", "packs"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_what_the_system_does_not_give_for_now_is_not_let_go(
    plain: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    before = _state(plain)
    open_plain = disk.open_plain

    def refusing(path: str | Path, flags: int = os.O_RDONLY) -> int:
        if Path(path).suffix == ".pack":
            raise OSError(code, os.strerror(code), os.fspath(path))
        return open_plain(path, flags)

    with Repository.open(plain) as repository, monkeypatch.context() as patch:
        if where == "index":
            patch.setattr(index_pages.os, "pread", _refuse(OSError(code, os.strerror(code))))
        else:
            patch.setattr(disk, "open_plain", refusing)
        with pytest.raises(StorageError) as caught:
            repository.fsck(repair=True)
    assert os.strerror(code) in str(caught.value)
    assert "damaged" not in (caught.value.hint or "")
    assert _state(plain) == before
    assert _is_whole(plain)


def test_a_check_that_gets_no_thread_is_a_sentence(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.open(plain) as repository, monkeypatch.context() as patch:
        patch.setattr("ijfs_engine.maintenance.fsck.check_index", _refuse(RuntimeError("can't start new thread")))
        with pytest.raises(StorageError, match="can't start new thread"):
            repository.fsck(repair=True)


def test_an_index_that_says_it_is_longer_than_memory_can_be_is_damaged(plain: Path) -> None:
    """LMDB would say of it that memory is short."""
    data = bytearray((plain / "index/data.mdb").read_bytes())
    for page in (0, os.sysconf("SC_PAGE_SIZE")):
        data[page + 136 + 6] = 0x7F  # of the number of the last page
    (plain / "index/data.mdb").write_bytes(data)
    with pytest.raises(CorruptError, match="as long as it says"):
        Repository.open(plain)
    _repair(plain)
    assert _is_whole(plain)


def _refuse(error: Exception) -> object:
    def call(*_: object, **__: object) -> NoReturn:
        raise error

    return call


@pytest.mark.parametrize("of", ["plain", "sealed"])
def test_a_pack_of_another_repository_is_left_alone(request: pytest.FixtureRequest, tmp_path: Path, of: str) -> None:
    path: Path = request.getfixturevalue(of)
    names = _names(path)
    with Repository.init(tmp_path / "other") as other:
        save(other, {"theirs": os.urandom(50_000)}, branch="theirs")
        (theirs,) = (tmp_path / "other" / "packs").iterdir()
    stray = path / "packs" / "00000009.pack"
    shutil.copy(theirs, stray)
    shutil.rmtree(path / "index")
    _repair(path)
    with Repository.open(path) as repository:
        repository.gc()
        report = repository.fsck()
        assert (report.strays, report.clean) == ([stray.name], True)
        assert [one.message for one in repository.snapshots()] == [""]
    assert stray.read_bytes() == theirs.read_bytes()
    assert _names(path) == names


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_what_is_no_file_under_a_packs_name_is_stepped_over(plain: Path, what: str) -> None:
    """A save looked for a free number for ever."""
    way = plain / "packs" / "00000002.pack"
    if what == "directory":
        way.mkdir()
    elif what == "link":
        way.symlink_to("nowhere")
    else:
        os.mkfifo(way)
    with Repository.open(plain) as repository:
        save(repository, {"new": b"new"}, branch="new")
        repository.gc()
        report = repository.fsck()
        assert (report.strays, report.clean) == ([way.name], True)
    assert (plain / "packs" / "00000003.pack").is_file()
    assert os.path.lexists(way)


def test_a_feature_with_a_damaged_letter_is_damage(sealed: Path) -> None:
    text = (sealed / "format").read_text()
    (sealed / "format").write_text(text.replace("encrypted", "encrypued"))
    with pytest.raises(CorruptError, match="is damaged"):
        Repository.open(sealed)
    _repair(sealed)
    assert (sealed / "format").read_text() == text
    assert _is_whole(sealed)
