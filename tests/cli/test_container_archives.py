"""Checkpoints of containers: archives in and out. What podman itself says of them is in tests/places."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from calls import Ijfs

pytestmark = pytest.mark.usefixtures("repo")

Bytes = Callable[[bytes], bytes]

FILES = {
    "checkpoint/inventory.img": b"inventory",
    "checkpoint/pstree.img": b"pstree",
    "checkpoint/pages-1.img": bytes(range(256)) * 16 * 600,
    "config.dump": json.dumps({"name": "web", "rootfsImageName": "localhost/app:latest"}).encode(),
    "rootfs-diff.tar": b"files that changed",
    "artifacts/note": b"",
}


def tar_of(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o600, 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return out.getvalue()


def content(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: read(tar, member) for member in tar if member.isfile()}


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def plain(data: bytes) -> bytes:
    return data


def unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize(
    ("suffix", "pack", "unpack"),
    [(".tar", plain, plain), (".tar.gz", gzip.compress, gzip.decompress), (".tar.zst", zstandard.compress, unzstd)],
)
def test_an_archive_comes_out_as_it_went_in(
    ijfs: Ijfs, tmp_path: Path, suffix: str, pack: Bytes, unpack: Bytes
) -> None:
    archive, again = tmp_path / f"web{suffix}", tmp_path / f"again{suffix}"
    archive.write_bytes(pack(tar_of(FILES)))
    ijfs("import", archive)
    assert ijfs("ls", "main").out.split() == ["container/", "images/"]
    ijfs("export", "main", again, "--for", "podman")
    assert content(unpack(again.read_bytes())) == FILES
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([archive.name, again.name])


def test_the_directory_of_an_archive_is_the_same_to_ijfs(ijfs: Ijfs, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_bytes(data)
    ijfs("import", tmp_path / "web")
    ijfs("export", "main", tmp_path / "images", "--for", "runc")
    for name in ("inventory.img", "pstree.img", "pages-1.img"):
        assert (tmp_path / "images" / name).read_bytes() == FILES[f"checkpoint/{name}"]


def test_an_oci_image_has_one_layer_that_is_the_checkpoint(ijfs: Ijfs, tmp_path: Path) -> None:
    (tmp_path / "web.tar").write_bytes(tar_of(FILES))
    ijfs("import", tmp_path / "web.tar")
    ijfs("export", "main", tmp_path / "image", "--for", "oci")
    blobs = content((tmp_path / "image").read_bytes())
    for name, data in blobs.items():
        assert "/" not in name or hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    (listed,) = json.loads(blobs["index.json"])["manifests"]
    assert listed["annotations"]["org.opencontainers.image.ref.name"] == "localhost/web:latest"
    manifest = json.loads(blobs[f"blobs/sha256/{listed['digest'][7:]}"])
    assert manifest["annotations"]["io.podman.annotations.checkpoint.name"] == "web"
    (layer,) = manifest["layers"]
    assert content(blobs[f"blobs/sha256/{layer['digest'][7:]}"]) == FILES
    config = json.loads(blobs[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (tar_of({"../out": b"x", **FILES}), "'../out', which is outside of it"),
        (tar_of({"/etc/out": b"x", **FILES}), "'/etc/out', which is outside of it"),
        (tar_of(FILES, link("checkpoint/more", "/etc")), "is neither a file nor a directory"),
        (tar_of({"readme": b"x"}), "holds no container's checkpoint"),
        (tar_of(FILES)[: 512 * 700], "no whole tar archive"),
        (gzip.compress(tar_of(FILES))[:-400], "no whole tar archive"),
        (zstandard.compress(tar_of(FILES))[:-9], "no whole tar archive"),
        (b"no archive at all", "no whole tar archive"),
        (b"", "no whole tar archive"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    ijfs: Ijfs, run_ijfs: Ijfs, tmp_path: Path, archive: bytes, said: str
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "bad.tar").write_bytes(archive)
    done = run_ijfs("import", tmp_path / "bad.tar", env={"TMPDIR": str(tmp_path / "made")})
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert not list((tmp_path / "made").iterdir())
    assert ijfs("log", "--json").json["snapshots"] == []


def test_only_a_containers_snapshot_is_exported_for_podman(ijfs: Ijfs, run_ijfs: Ijfs, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    ijfs("import", tmp_path / "plain")
    done = run_ijfs("export", "main", tmp_path / "out.tar", "--for", "podman")
    assert done.code == 1
    assert "no container's" in done.err
    (tmp_path / "web.tar").write_bytes(tar_of(FILES))
    ijfs("import", tmp_path / "web.tar", "--branch", "web")
    assert "exists" in run_ijfs("export", "web", tmp_path / "web.tar", "--for", "podman").err
    assert not (tmp_path / "out.tar").exists()
