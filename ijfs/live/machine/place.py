"""Where ijfs runs and what that place withholds: a user's shell, a container, a user namespace. Called by doctor.py.

What is missing is named one by one, with the option of docker, podman and Kubernetes that gives it (docs/places.md).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ijfs.live.checks import privilege
from ijfs.live.checks.result import CheckResult
from ijfs.live.machine.trial import attempt
from ijfs.live.sandbox import proc_sys
from ijfs.live.sandbox.volumes import is_layered, kind_at

_PROC_SYS_REMEDY = (
    "podman: --security-opt unmask=/proc/sys; docker: --security-opt systempaths=unconfined; Kubernetes: "
    "securityContext.procMount: Unmasked (or --privileged)"
)
_VOLUME_REMEDY = (
    "keep it on a volume (`-v` of docker and podman, an emptyDir in Kubernetes) of ext4, xfs, btrfs or tmpfs, by -r or "
    "IJFS_REPO"
)


def user() -> Iterator[CheckResult]:
    """Who ijfs is here: root, with the capabilities that it needs, and no filter on it."""
    if privilege.in_user_namespace() or (os.geteuid() != 0 and privilege.missing()):
        evidence, remedy = privilege.objection() or ("", "")
        yield CheckResult(check="capabilities", outcome="refuse", evidence=evidence, remedy=remedy)
        return
    missing = privilege.missing()
    for name in missing:
        yield CheckResult(
            check="capabilities",
            outcome="refuse",
            evidence=f"root here lacks CAP_{name}",
            remedy=privilege.how_to_give([name]),
        )
    if not missing:
        yield CheckResult(check="capabilities", outcome="ok", evidence="root with all that is needed")
    if not privilege.may_save_other_users():
        evidence = (
            "root here lacks CAP_SYS_RESOURCE: processes of other users cannot be saved (postgres, nginx as it comes)"
        )
        remedy = privilege.how_to_give(["SYS_RESOURCE"])
        yield CheckResult(check="capabilities", outcome="warn", evidence=evidence, remedy=remedy)
    if privilege.is_filtered():
        evidence = "a filter is on this process: programs are lost as they are saved"
        yield CheckResult(check="seccomp", outcome="refuse", evidence=evidence, remedy=privilege.SECCOMP_REMEDY)


def surroundings() -> Iterator[CheckResult]:
    """What kind of machine this is, where that is the cause of what does not work: a container, or WSL."""
    version = Path("/proc/version").read_text(errors="replace").lower()
    if "microsoft" in version:
        new = "wsl2" in version or "standard" in version
        evidence = "WSL 2" if new else "WSL 1, whose kernel has neither namespaces nor ptrace as CRIU needs them"
        remedy = "`wsl --set-version DISTRIBUTION 2`"
        yield CheckResult(check="place", outcome="ok" if new else "refuse", evidence=evidence, remedy=remedy)
    name = container()
    if name:
        evidence = f"inside a container ({name}): what it may do is decided where it is started, docs/places.md"
        yield CheckResult(check="place", outcome="ok", evidence=evidence)


def container() -> str:
    """What this container was made by; "" outside of one."""
    for mark, name in _CONTAINERS.items():
        if Path(mark).exists():
            return name
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "Kubernetes"
    return os.environ.get("container", "")  # noqa: SIM112 - systemd's, and podman's


_CONTAINERS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}


def root_filesystem(repo: Path) -> Iterator[CheckResult]:
    """What sandboxes stand on here, and whether a base can be laid out for them."""
    if not is_layered(kind_at(Path("/"))):
        return
    evidence = (
        f"`/` is {kind_at(Path('/'))}: programs stand on its files as the base `machine`, imported at the first start"
    )
    kind = kind_at(repo)
    if is_layered(kind):
        text = f"`/` is {kind_at(Path('/'))}, and so is the place of the repository, {repo}"
        yield CheckResult(check="root files", outcome="refuse", evidence=text, remedy=_VOLUME_REMEDY)
    else:
        yield CheckResult(check="root files", outcome="ok", evidence=evidence)


def system_settings() -> Iterator[CheckResult]:
    """/proc/sys, which CRIU writes to; tried in a mount namespace of a child's own."""
    if not proc_sys.is_read_only() or "SYS_ADMIN" in privilege.missing():
        return
    options = "remount,bind,rw"
    done = subprocess.run(
        ["unshare", "-m", "mount", "-o", options, str(proc_sys.PLACE)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        evidence = "/proc/sys is read-only here; ijfs makes it writable for CRIU alone"
        yield CheckResult(check="/proc/sys", outcome="ok", evidence=evidence)
    else:
        evidence = "/proc/sys is read-only, and may not be made writable"
        yield CheckResult(check="/proc/sys", outcome="refuse", evidence=evidence, remedy=_PROC_SYS_REMEDY)


def trial(repo_place: Path, found: Sequence[CheckResult]) -> Iterator[CheckResult]:
    """A small program is saved and restored, unless something stands in the way already."""
    if any(verdict.outcome == "refuse" or verdict.check == "criu" for verdict in found):
        return
    outcome = attempt(repo_place)
    if not outcome.step:
        evidence = f"a small program with a TCP connection was saved and came back, all in {outcome.seconds:.1f} s"
        yield CheckResult(check="trial", outcome="ok", evidence=evidence)
        return
    evidence = f"a small program could not be {_DONE[outcome.step]}: {outcome.complaint}"
    yield CheckResult(check="trial", outcome="refuse", evidence=evidence, remedy=outcome.hint)


_DONE = {"start": "started", "save": "saved", "restore": "restored"}
