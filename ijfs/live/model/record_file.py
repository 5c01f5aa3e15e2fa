"""instance.json: read and rewritten by rename, so that a reader sees the old record or the new one, never half."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from ijfs.live.errors import NoInstanceError
from ijfs.live.model.paths import LOG_INSIDE, InstancePaths, SandboxPaths
from ijfs.live.model.records import InstanceInfo, InstanceRecord
from ijfs_engine.errors import CorruptError, StorageError


def read_record(paths: InstancePaths) -> InstanceRecord:
    """The instance's record; NoInstanceError where there is none, CorruptError where it cannot be read."""
    try:
        data = paths.record.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NoInstanceError(f"there is no program `{paths.root.name}`") from None
    try:
        return msgspec.json.decode(data, type=InstanceRecord)
    except msgspec.DecodeError as error:
        name = paths.root.name
        raise CorruptError(
            f"the record of `{name}`, {paths.record}, is damaged: {error}",
            hint=f"`ijfs stop --rm {name}` ends what runs there and forgets it, with its files",
        ) from error


def write_record(paths: InstancePaths, record: InstanceRecord) -> None:
    """Replace the record. Not fsynced: after a crash of the machine the program is gone anyway."""
    replace_file(paths.record, msgspec.json.format(msgspec.json.encode(record), indent=1))


def replace_file(path: os.PathLike[str], data: bytes) -> None:
    """Write a file, mode 0600, under a temporary name and rename it into place."""
    temporary = f"{os.fspath(path)}.new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StorageError.of(f"cannot write {os.fspath(path)}", error) from error


def kernel_connection(record: InstanceRecord, *, inside: bool) -> dict[str, Any]:
    """A kernel's connection information: the ports inside the sandbox, or the relay's on the host."""
    ports = {f"{port.name}_port": port.inside if inside else port.host for port in record.relay}
    kernel_ports = {key: value for key, value in ports.items() if key != "tcp_port"}
    return {
        **kernel_ports,
        "ip": "127.0.0.1",
        "transport": "tcp",
        "signature_scheme": "hmac-sha256",
        "key": record.spec.kernel_key,
        "kernel_name": record.spec.kernel_name,
    }


def write_connection_files(paths: InstancePaths, record: InstanceRecord) -> None:
    """kernel.json for clients outside; the one the kernel reads is written by the sandbox."""
    if record.spec.kind == "kernel":
        import json

        data = json.dumps(kernel_connection(record, inside=False), indent=1)
        replace_file(paths.connection_file, data.encode())


def ends_ns(record: InstanceRecord) -> int | None:
    """When its time to live is over; None where it has no such limit."""
    return None if record.spec.ttl_s is None else record.created_ns + round(record.spec.ttl_s * 1e9)


def _log_of(box: SandboxPaths, record: InstanceRecord) -> Path:
    """Where the host has a program's log: on a disk of its own it is seen through the program, and kept at its end."""
    if not box.image.exists():
        return box.program_log
    if record.status == "running" and record.program is not None:
        return Path(f"/proc/{record.program.pid}/root{LOG_INSIDE}")
    return box.kept_log


def info_of(
    paths: InstancePaths,
    record: InstanceRecord,
    *,
    keeper_running: bool = True,
    memory: float = 1.0,
    damage: str = "",
) -> InstanceInfo:
    """What callers are shown of a record."""
    kernel = record.spec.kind == "kernel"
    return InstanceInfo(
        name=record.spec.name,
        kind=record.spec.kind,
        status=record.status,
        argv=record.spec.argv,
        cwd=record.spec.cwd,
        pid=record.program.pid if record.program and record.status == "running" else None,
        snapshot=record.snapshot,
        branch=record.branch,
        relay=record.relay,
        connection_file=str(paths.connection_file) if kernel else None,
        connection=kernel_connection(record, inside=False) if kernel else None,
        network=record.spec.network,
        egress=record.spec.egress,
        log=str(_log_of(paths.sandbox(record.generation), record)),
        created_ns=record.created_ns,
        exit_status=record.exit_status,
        keeper_running=keeper_running,
        memory=memory,
        note=record.note,
        saving=record.saving,
        save_error=record.save_error,
        base=record.base.name if record.base is not None else None,
        damage=damage or record.damage,
        ends_ns=ends_ns(record),
        parked=record.parked is not None and record.status == "running",
        parked_on_disk=record.parked_on_disk and record.status == "exited",
        idle=record.spec.idle,
        notebook=record.spec.notebook,
        limits=record.spec.limits,
        oom_kills=record.oom_kills,
        storage=record.spec.storage,
    )
