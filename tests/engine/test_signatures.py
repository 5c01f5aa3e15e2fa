"""Signed snapshots: who signed, who may, what was altered, and that signatures go where snapshots go."""

from __future__ import annotations

from pathlib import Path

import pytest
from storekit import save

from ijfs_engine import IjfsError, Repository, UnknownNameError, read_allowed_signers
from ijfs_engine.storage import signatures

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")


def make_key(path: Path) -> str:
    """A private key of ssh at a path; the public one as ssh writes it."""
    private = ed25519.Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding, serialization.PrivateFormat
    path.write_bytes(private.private_bytes(encoding.PEM, form.OpenSSH, serialization.NoEncryption()))
    return str(private.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode())


def test_a_snapshot_is_signed_by_who_signed_it(repository: Repository, tmp_path: Path) -> None:
    first, other = save(repository, {"a": b"one"}, branch="main"), save(repository, {"a": b"two"}, branch="side")
    public = make_key(tmp_path / "key")
    (tmp_path / "allowed").write_text(f"# who may\nada@example.org {public} a comment\n")
    allowed = read_allowed_signers(tmp_path / "allowed")
    repository.sign(first.id, tmp_path / "key")
    repository.sign(first.id, tmp_path / "key")
    assert [allowed[one.public] for one in repository.signers(first.id)] == ["ada@example.org"]
    assert repository.signers(other.id) == []
    # Somebody with the disk puts the signature of one beside another.
    stored = repository.path / "signatures"
    (stored / other.id.hex()).write_bytes((stored / first.id.hex()).read_bytes())
    assert repository.signers(other.id) == []
    (stored / first.id.hex()).write_bytes(b"nothing of the kind")
    assert repository.signers(first.id) == []


def test_what_is_made_is_signed_where_that_is_set(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_key(tmp_path / "key")
    monkeypatch.setenv(signatures.KEY_VARIABLE, str(tmp_path / "key"))
    with repository.begin() as writer:
        writer.add_file("files/a", b"some text")
        made = writer.commit()
    assert len(repository.signers(made.id)) == 1
    monkeypatch.setenv(signatures.KEY_VARIABLE, str(tmp_path / "missing"))
    with repository.begin() as writer:
        writer.add_file("files/a", b"other text")
        made = writer.commit()
    assert repository.signers(made.id) == []
    assert f"{made.id.hex()[:12]} is not signed" in caplog.text


def test_signatures_go_with_a_push_and_come_with_a_pull(repository: Repository, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    first = save(repository, {"a": b"one"}, branch="main")
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", {"branch/main": first.id})
    make_key(tmp_path / "key")
    second = save(repository, {"a": b"two"}, branch="main", parents=[first.id])
    repository.remotes.push("origin", {"branch/main": second.id})
    repository.sign(first.id, tmp_path / "key")  # no branch is at it any more
    repository.remotes.push("origin", {"branch/main": second.id})
    with Repository.init(tmp_path / "other") as other:
        other.remotes.add("origin", url)
        other.remotes.fetch("origin")
        assert len(other.signers(first.id)) == 1
        other.remotes.pull("origin")
        (tmp_path / "bucket/signatures" / first.id.hex()).unlink()
        make_key(tmp_path / "second")
        other.sign(first.id, tmp_path / "second")
        assert len(other.signers(first.id)) == 2


def test_gc_forgets_signatures_with_their_snapshots(repository: Repository, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    first, other = save(repository, {"a": b"one"}, branch="main"), save(repository, {"a": b"two"}, branch="side")
    for one in (first, other):
        repository.sign(one.id, tmp_path / "key")
    repository.remove(other.id)
    repository.gc()
    repository.gc()
    assert [file.name for file in (repository.path / "signatures").iterdir()] == [first.id.hex()]


def test_what_cannot_sign_and_who_cannot_be_allowed_are_sentences(repository: Repository, tmp_path: Path) -> None:
    first = save(repository, {"a": b"one"}, branch="main")
    make_key(tmp_path / "key")
    with pytest.raises(UnknownNameError):
        repository.sign(bytes(32), tmp_path / "key")
    for text in (b"no key", b""):
        (tmp_path / "none").write_bytes(text)
        with pytest.raises(IjfsError, match="no private key"):
            repository.sign(first.id, tmp_path / "none")
    for line in ("ada", "ada ssh-rsa AAAA", "ada ssh-ed25519 AAAA"):
        (tmp_path / "allowed").write_text(f"# comment\n{line}\n")
        with pytest.raises(IjfsError, match="line 2"):
            read_allowed_signers(tmp_path / "allowed")
