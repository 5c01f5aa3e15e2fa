"""`ijfs://SNAPSHOT/path`: snapshots' files as fsspec's readers have them; the store alone, no live program."""

from __future__ import annotations

from pathlib import Path

import pytest

from ijfs_engine import Repository, import_directory

fsspec = pytest.importorskip("fsspec", reason="needs the extra `fsspec`")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two snapshots of a directory."""
    work = tmp_path / "work"
    (work / "home/me").mkdir(parents=True)
    (work / "home/me/out.csv").write_text("a,b\n1,2\n")
    (work / "home/me/link").symlink_to("out.csv")
    (work / "big").write_bytes(bytes(range(256)) * 40_000)
    with Repository.init(tmp_path / "repo") as repository:
        first = import_directory(repository, work, branch="main")
        repository.refs.set_tag("v1", first.id)
        (work / "home/me/out.csv").write_text("a,b\n3,4\n")
        import_directory(repository, work, parents=[first.id], branch="main")
    monkeypatch.setenv("IJFS_REPO", str(tmp_path / "repo"))
    return tmp_path / "repo"


def test_tables_are_read_by_their_address(repo: Path) -> None:
    pandas = pytest.importorskip("pandas")
    options = {"repo": str(repo)}
    assert pandas.read_csv("ijfs://v1/home/me/out.csv", storage_options=options).values.tolist() == [[1, 2]]
    assert pandas.read_csv("ijfs://main/home/me/out.csv", storage_options=options).values.tolist() == [[3, 4]]


def test_directories_are_listed_and_walked(repo: Path) -> None:
    fs = fsspec.filesystem("ijfs", repo=str(repo))
    assert fs.ls("", detail=False) == ["main", "v1"]
    assert fs.ls("ijfs://main/home/me", detail=False) == ["main/home/me/link", "main/home/me/out.csv"]
    assert sorted(fs.find("v1")) == ["v1/big", "v1/home/me/link", "v1/home/me/out.csv"]
    assert fs.glob("ijfs://v1/home/*/*.csv") == ["v1/home/me/out.csv"]
    info = fs.info("v1/home/me/link")
    assert (info["type"], info["destination"]) == ("link", "out.csv")
    assert (fs.isdir("v1"), fs.isdir("v1/home"), fs.isfile("v1/big"), fs.exists("v2")) == (True, True, True, False)
    assert fs.modified("v1/big").year > 2000


def test_ranges_of_a_file_are_read(repo: Path) -> None:
    fs = fsspec.filesystem("ijfs", repo=str(repo))
    with fs.open("v1/big", block_size=1 << 16) as file:
        assert file.seek(-3, 2) == 256 * 40_000 - 3
        assert file.read() == b"\xfd\xfe\xff"
        file.seek(1_000_001)
        assert file.read(3) == b"ABC"
    assert fs.cat_file("v1/big", -2) == b"\xfe\xff"
    assert fs.cat_file("v1/big", 5, 3) == b""


def test_what_cannot_be_is_an_os_error(repo: Path) -> None:
    fs = fsspec.filesystem("ijfs", repo=str(repo))
    for path in ("v1/none", "none/home", "v1/big/below"):
        with pytest.raises(FileNotFoundError):
            fs.open(path)
    with pytest.raises(IsADirectoryError):
        fs.open("v1/home")
    with pytest.raises(PermissionError):
        fs.open("v1/new", "wb")
