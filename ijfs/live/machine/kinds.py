"""What kind of machine or container this is, and which of ijfs's needs it meets: `ijfs doctor --provider`.

A kind is told by what is found, never by a provider's name: providers change what they give, and one gives several
kinds. docs/places.md has the same table for people; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ijfs.live.checks import privilege
from ijfs.live.checks.result import CheckOutcome, CheckResult
from ijfs.live.process import processor

_FIRST_PIDS: Final = 0xEFFFFFFC
"""The inode of the machine's own namespace of process ids (<linux/proc_ns.h>): a container has another one."""

_CHECKPOINTS: Final = Path("/proc/sys/kernel/ns_last_pid")
"""There where the kernel can checkpoint and restore (CONFIG_CHECKPOINT_RESTORE), and is Linux at all."""


class Facts(NamedTuple):
    """What was found. `checkpoints`: the kernel can; `machine`: no container; `virtual`: there is a hypervisor;
    `root`: of the machine, not of a user namespace; `nested`: in a user namespace; `all_rights`: every capability;
    `needed_rights`: those that ijfs needs; `filtered`: a seccomp filter is on this process."""

    checkpoints: bool = True
    machine: bool = True
    virtual: bool = False
    root: bool = True
    nested: bool = False
    all_rights: bool = True
    needed_rights: bool = True
    filtered: bool = False


class Kind(NamedTuple):
    """One kind: what is so of it (the first kind of which all is so is meant), and what can be done there."""

    name: str
    told_by: str
    so: Mapping[str, bool]
    works: str


READS: Final = "what reads and moves snapshots: log, show, diff, export, push, pull"
EVERYTHING: Final = "everything"

KINDS: Final = (
    Kind(
        "kernel without checkpoints",
        "no /proc/sys/kernel/ns_last_pid: a sandbox's own kernel, WSL 1, an old or small Linux",
        {"checkpoints": False},
        READS,
    ),
    Kind("user namespace", "user ids are mapped: rootless podman or docker, `unshare -r`", {"nested": True}, READS),
    Kind("ordinary user", "not root", {"root": False}, f"{READS}; programs by `ijfs serve --users` where root runs it"),
    Kind(
        "managed container",
        "process ids of its own, and no CAP_SYS_PTRACE, CAP_SYS_ADMIN or another one that is needed",
        {"machine": False, "needed_rights": False},
        READS,
    ),
    Kind(
        "filtered container", "a seccomp filter is on its processes, and no right is missing", {"filtered": True}, READS
    ),
    Kind(
        "privileged container",
        "process ids of its own, every capability",
        {"machine": False, "all_rights": True},
        f"{EVERYTHING}, with the repository on a volume",
    ),
    Kind(
        "container with what is needed",
        "process ids of its own, the capabilities that are needed and not all",
        {"machine": False},
        "run, save, restore and fork of root's programs, with the repository on a volume",
    ),
    Kind(
        "confined service",
        "the machine's own process ids, and root lacks a capability that is needed: a hardened unit",
        {"needed_rights": False},
        READS,
    ),
    Kind(
        "virtual machine",
        "the machine's own process ids; the processor says that there is a hypervisor",
        {"virtual": True},
        EVERYTHING,
    ),
    Kind("bare metal", "the machine's own process ids, and no hypervisor", {}, EVERYTHING),
)


class Need(NamedTuple):
    """Something that ijfs does, and the checks of `ijfs doctor` that it stands on."""

    name: str
    checks: tuple[str, ...]
    lost: str


_FOR_SAVES: Final = (
    "kernel", "capabilities", "seccomp", "CRIU", "criu check", "root files", "overlay", "/proc/sys", "init", "trial",
)  # fmt: skip

NEEDS: Final = (
    Need("save", _FOR_SAVES, "no program can be run, saved or restored"),
    Need("run at once", ("userfaultfd",), "a restore reads all memory first"),
    Need("mount", ("FUSE", "fusermount3"), "no `ijfs mount`"),
    Need("limits", ("limits",), "`--memory`, `--cpus`, `--pids` and `--io` limit nothing, or not all"),
    Need("disk", ("disk",), "no `--disk`: open databases are read-only in a copy"),
)


def facts() -> Facts:
    """What is so of where this process runs."""
    return Facts(
        checkpoints=_CHECKPOINTS.exists(),
        machine=os.stat("/proc/self/ns/pid").st_ino == _FIRST_PIDS,
        virtual="hypervisor" in processor.flags(),
        root=os.geteuid() == 0,
        nested=privilege.in_user_namespace(),
        all_rights=privilege.effective() == privilege.all_there_are(),
        needed_rights=not privilege.missing(),
        filtered=privilege.is_filtered(),
    )


def kind_of(found: Facts) -> Kind:
    """The kind that these facts make."""
    so = found._asdict()
    return next(kind for kind in KINDS if all(so[name] is value for name, value in kind.so.items()))


def here(checked: Sequence[CheckResult]) -> list[CheckResult]:
    """The kind, then each need, by what `ijfs doctor` found on this machine."""
    kind = kind_of(facts())
    works = kind.works == EVERYTHING or kind.works.startswith(f"{EVERYTHING},")
    evidence = f"{kind.name} ({kind.told_by}): {kind.works}"
    place = CheckResult(check="kind", outcome="ok" if works else "warn", evidence=evidence, remedy="docs/places.md")
    return [place, *(_met(need, checked) for need in NEEDS)]


def _met(need: Need, checked: Sequence[CheckResult]) -> CheckResult:
    against = [one for one in checked if one.check in need.checks and one.outcome != "ok"]
    worst = next((one for one in against if one.outcome == "refuse"), against[0] if against else None)
    if worst is None:
        return CheckResult(check=need.name, outcome="ok", evidence="can be done here")
    outcome: CheckOutcome = worst.outcome
    lost = need.lost if outcome == "refuse" or need.name != "save" else "with a limit"
    return CheckResult(check=need.name, outcome=outcome, evidence=f"{lost}: {worst.evidence}", remedy=worst.remedy)
