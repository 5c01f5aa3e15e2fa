"""Containers as people have them: an image on overlayfs, privileged or with the least that works, or with less."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from containers import SMALLEST, UNFILTERED, Containers, archive

pytestmark = [pytest.mark.root, pytest.mark.criu, pytest.mark.places, pytest.mark.timeout(600)]

COUNT = "n=0; while :; do n=$((n+1)); echo $n >/root/count; sleep 0.05; done"
# goes_on NAME: its program counts on.
FUNCTIONS = """
count() { ijfs exec $1 -- cat /root/count 2>/dev/null || echo 0; }
goes_on() {
    local from=$(count $1)
    for i in $(seq 100); do [ $(count $1) -gt $from ] && return; sleep 0.1; done
    false
}
"""
START = f"{FUNCTIONS} ijfs -q init && cd /root && ijfs run --name count -- sh -c '{COUNT}' && goes_on count"
END = "ijfs -q stop --all --rm"


def capabilities(*names: str) -> list[str]:
    """podman's options for these and no others."""
    return ["--cap-drop=all", *(f"--cap-add={name}" for name in names)]


def all_ways(containers: Containers, *options: str, image: tuple[str, ...] = ()) -> None:
    """Run, save, fork, restore, restore a restored one; doctor has nothing against it."""
    script = " && ".join(
        [
            "mkdir -p /data && ijfs -q doctor",
            START,
            "ijfs save count && ijfs fork count --names a,b && goes_on a",
            "ijfs restore count --name c && goes_on c",
            "ijfs save c && ijfs restore c --name c --replace && goes_on c",
            "goes_on count",
            END,
        ]
    )
    ran = containers.run(script, *options, **({"image": image} if image else {}))
    assert ran.code == 0, ran.out + ran.err


def test_a_privileged_container_on_an_overlay(containers: Containers, repo: Path) -> None:
    all_ways(containers, "--privileged")


def test_a_container_with_the_smallest_set(containers: Containers, repo: Path) -> None:
    """/proc/sys is read-only in it, and made writable for CRIU; there is no /dev/fuse."""
    all_ways(containers, *capabilities(*SMALLEST), *UNFILTERED)


@pytest.mark.parametrize("missing", SMALLEST)
def test_each_capability_that_is_missing_is_named_with_the_option_that_gives_it(
    containers: Containers, repo: Path, missing: str
) -> None:
    options = [*capabilities(*(name for name in SMALLEST if name != missing)), *UNFILTERED]
    script = "ijfs -q init; ijfs doctor; echo doctor $?; ijfs run -- sleep 9; echo run $?; ls /data/repo/live"
    ran = containers.run(script, *options)
    assert f"root here lacks CAP_{missing}" in ran.out, ran.out
    assert f"--cap-add={missing} " in ran.out
    assert "doctor 12" in ran.out
    assert "run 12" in ran.out
    assert f"lacks CAP_{missing}" in ran.err
    assert "No such file" in ran.err  # nothing was begun


def test_a_seccomp_filter_is_named(containers: Containers, repo: Path) -> None:
    ran = containers.run("ijfs -q init; ijfs doctor; ijfs run -- sleep 9; exit $?", *capabilities(*SMALLEST))
    assert ran.code == 12, ran.out + ran.err
    assert "seccomp=unconfined" in ran.out
    assert "seccomp=unconfined" in ran.err


def test_a_repository_on_the_containers_own_overlay_is_refused_with_the_way_out(containers: Containers) -> None:
    ran = containers.run("export IJFS_REPO=/root/r; ijfs -q init; ijfs run -- sleep 9; exit $?", "--privileged")
    assert ran.code == 12, ran.out + ran.err
    assert "lies on overlay" in ran.err
    assert "volume" in ran.err


def test_a_root_that_is_no_overlay_needs_no_base(containers: Containers, repo: Path, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    subprocess.run(f"tar -C {root} -xf {archive()}", shell=True, check=True)
    all_ways(containers, "--privileged", image=("--rootfs", str(root)))
    assert not (containers.volume / "repo" / "bases").exists()


def test_a_snapshot_comes_back_in_another_container_and_after_an_upgrade(containers: Containers, repo: Path) -> None:
    """The second container's C library is another one; the program maps the one that it was saved with."""
    ran = containers.run(f"{START} && ijfs save count -m first && {END}", "--privileged")
    assert ran.code == 0, ran.out + ran.err
    upgrade = "libc=$(realpath /lib/*-linux-gnu/libc.so.6); echo >>$libc; rm /etc/debian_version"
    script = f"{FUNCTIONS} {upgrade}; ijfs restore count --name again && goes_on again && ijfs exec again -- cat "
    ran = containers.run(f"{script} /etc/debian_version && ijfs ps --json && {END}", "--privileged")
    assert ran.code == 0, ran.out + ran.err
    instances = json.loads(ran.out[ran.out.index("{") : ran.out.rindex("}") + 1])["instances"]
    assert [instance["base"] for instance in instances] == ["machine"]


def test_what_is_edited_and_installed_after_the_import_is_there_for_new_programs(
    containers: Containers, repo: Path
) -> None:
    script = f"""
    {START} && {END}
    mkdir -p /opt/new/deep; echo installed >/opt/new/deep/file
    echo edited >/root/work.txt; sed -i 's/^root:/root:/;s/$//' /etc/hosts; rm -r /usr/share/doc
    echo changed >/etc/motd
    ijfs run --name see -- sh -c 'cat /opt/new/deep/file /root/work.txt /etc/motd; ls -d /usr/share/doc; sleep 100'
    sleep 0.5; ijfs logs see; ijfs -q save see && ijfs -q restore see --name seen; ijfs exec seen -- cat /etc/motd
    ijfs base list --json; {END}
    """
    ran = containers.run(script, "--privileged")
    assert "installed\nedited\nchanged\n" in ran.out, ran.out + ran.err
    assert "cannot access '/usr/share/doc'" in ran.out
    assert '"versions": 1' in ran.out
    assert ran.err.count("imported in") == 1


def test_the_demo_holds_all_its_claims(containers: Containers, repo: Path) -> None:
    ran = containers.run("mkdir /data/tmp; cd /root; ijfs demo", "--privileged", "-e", "TMPDIR=/data/tmp")
    assert ran.code == 0, ran.out[-3000:] + ran.err
    assert "claims held" in ran.out
