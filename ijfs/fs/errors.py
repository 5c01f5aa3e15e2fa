"""What can go wrong between a mount point and its user."""

from __future__ import annotations

from ijfs_engine.errors import IjfsError, LockedError


class MountError(IjfsError):
    """A filesystem could not be mounted or taken away; nothing else was touched."""


class MountPointError(MountError):
    """The path cannot be a mount point: absent, no directory, not empty, or already one."""

    exit_code = 2


class NotMountedError(MountError):
    """Nothing of ours is mounted there."""

    default_hint = "`ijfs umount` without a path names the mounts of this repository"


class MountBusyError(LockedError):
    """Programs still use the mount."""

    default_hint = "close what uses it, or `ijfs umount --lazy`: it goes when the last of them lets go"
