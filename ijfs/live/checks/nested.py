"""Whether processes of a program run in namespaces of their own, as nested sandboxes make them.

Called by checks/blockers.py (doctor, and saves that were refused), and by checkpoint/freeze.py before each save: CRIU
refuses most of them by itself, but a network namespace it saves and then cannot restore.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ijfs.live.checks.result import CheckResult
from ijfs.live.process import procfs

# Kind, and what it is called. Mount namespaces come back; cgroups are not looked at (--manage-cgroups=ignore).
_KINDS = {"user": "user", "pid": "process id", "net": "network", "uts": "host name", "ipc": "System V IPC"}

_REMEDY = (
    "end that nested sandbox (bubblewrap, rootless podman, `unshare`, `ip netns`; browsers: --no-sandbox), or run what "
    "is in it without: the program has a sandbox already"
)


def of_program(pid: int) -> list[CheckResult]:
    """A refusal for each process that is in a namespace other than that of `pid`, its first process."""
    own = {kind: _inode(pid, kind) for kind in _KINDS}
    return [result for member in procfs.descendants(pid) for result in _of_process(member, own)][:5]


def _of_process(pid: int, own: dict[str, int | None]) -> list[CheckResult]:
    kinds = [_KINDS[kind] for kind in _KINDS if own[kind] is not None and _inode(pid, kind) not in (None, own[kind])]
    if not kinds:
        return []
    name = ""
    with contextlib.suppress(OSError):
        name = f" ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    evidence = f"process {pid}{name} runs in a {' and '.join(kinds)} namespace of its own"
    return [CheckResult(check="nested sandbox", outcome="refuse", evidence=evidence, remedy=_REMEDY)]


def _inode(pid: int, kind: str) -> int | None:
    with contextlib.suppress(OSError):
        return procfs.namespace_id(pid, kind)
    return None
