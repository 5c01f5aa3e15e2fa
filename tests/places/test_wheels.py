"""Wheels as people get them: made by tools/wheel for the Python of each Debian release, and installed where there is
no compiler. `make test-wheels` runs these: they fetch packages, and take minutes each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from containers import CHECKOUT, Containers, Ran, archive

pytestmark = [pytest.mark.root, pytest.mark.criu, pytest.mark.places, pytest.mark.timeout(1800)]

PYTHONS = {"bookworm": "3.11", "trixie": "3.13", "sid": "3.14"}
COMPILERS = "python3,python3-venv,python3-dev,ca-certificates,gcc,libc6-dev,libzstd-dev"
NO_COMPILER = "python3,python3-venv,ca-certificates,tini,iproute2,procps"
LIMIT_S = 1200
# What a machine knows of its index and of who signs for it.
INDEX = [
    *("-v", "/etc/ssl/certs:/etc/ssl/certs:ro"),
    *(word for name in ("PIP_CERT", "PIP_INDEX_URL") if name in os.environ for word in ("-e", name)),
]
INSTALLED = """
set -e
if command -v gcc cc; then exit 1; fi
python3 -m venv /venv
/venv/bin/pip install --quiet --only-binary :all: --find-links /data/dist 'ijfs[jupyter]'
export PATH=/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin
cd /root
python -m ijfs --version
python -c 'import sys; print("python", sys.version_info[:2])'
"""
WITHOUT_CRIU = "ijfs -q init; ijfs doctor || echo doctor $?\n"
WITH_CRIU = f"""
export IJFS_CRIU={CHECKOUT}/.prefix/bin/criu
ijfs kernel start --name k -q
ijfs exec k -c 'x = 41'
ijfs save k -m saved -q
ijfs fork k --names f -q
ijfs exec f -c 'print(x + 1)'
ijfs restore k --replace -q && ijfs exec k -c 'print(x)'
ijfs stop --all --rm -q
echo all done
"""


@pytest.fixture(scope="module", params=PYTHONS)
def release(request: pytest.FixtureRequest, containers: Containers) -> str:
    """A Debian release with two images of it: one to make wheels in, one to use them in."""
    if not os.environ.get("IJFS_TEST_WHEELS"):
        pytest.skip("`make test-wheels` runs these: they fetch packages, and take minutes each")
    name = str(request.param)
    try:
        containers.load(archive(name, COMPILERS, "-compilers"), f"localhost/{name}-compilers")
        containers.load(archive(name, NO_COMPILER, "-no-compiler"), f"localhost/{name}-no-compiler")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no {name}: {error.stderr[-300:]!r}")
    return name


def tracked_files(target: Path) -> None:
    """The checkout without what is built in it."""
    target.mkdir()
    listed = subprocess.run(["git", "-C", CHECKOUT, "ls-files", "-z"], check=True, capture_output=True).stdout
    tar = ["tar", "-C", str(CHECKOUT), "--null", "-T", "-", "-c"]
    made = subprocess.run(tar, input=listed, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", str(target), "-x"], input=made, check=True)


def test_a_wheel_is_made_and_works_where_there_is_no_compiler(containers: Containers, repo: Path, release: str) -> None:
    tracked_files(containers.volume / "src")

    def in_container(script: str, kind: str) -> Ran:
        image = (f"localhost/{release}-{kind}",)
        return containers.run(script, "--privileged", *INDEX, image=image, network="host", limit_s=LIMIT_S)

    made = in_container("/data/src/tools/wheel /data/dist", "compilers")
    assert made.code == 0, made.out + made.err
    used = in_container(INSTALLED + WITHOUT_CRIU + WITH_CRIU, "no-compiler")
    assert f"python ({PYTHONS[release].replace('.', ', ')})" in used.out, used.out + used.err
    assert "doctor 12" in used.out
    assert "install CRIU 4.1.1 or newer" in used.out
    assert used.out.endswith("42\n41\nall done\n"), used.out + used.err
