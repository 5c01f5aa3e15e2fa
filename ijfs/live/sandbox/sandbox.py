"""One sandbox with its program: the operating system's side of an instance, without protocol and without trio.

A keeper has one (keeper/state.py), and another in its place after going back. Everything blocks; the keeper calls it in
threads. The steps of starting are here (`launch`), those of saving and restoring in checkpoint/freeze.py and
checkpoint/restore.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ijfs.guest import ENVIRONMENT_VARIABLE, GUEST_PORT, PYTHON_PATH, TORCH_PATH
from ijfs.live.errors import CommandError, InstanceExitedError, SandboxError
from ijfs.live.gpu.environment import launch_environment
from ijfs.live.model.environment import INSTANCE_VARIABLE
from ijfs.live.model.paths import CONNECTION_FILE_INSIDE, INIT_INSIDE, SandboxPaths
from ijfs.live.model.records import InstanceSpec, Process, Volume
from ijfs.live.process import procfs
from ijfs.live.sandbox import apart, disk, egress, host_folders, init, limits, rootfs, slirp, terminal
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.limits import NO_GROUP, Group
from ijfs.live.sandbox.lower import HOST, Lower, inside, program_inside
from ijfs.live.sandbox.scratch import SCRATCH
from ijfs.live.sandbox.volumes import choose, is_below
from ijfs_engine import SECRET_VARIABLES

# tini reaps orphans, as pid 1 has to, and hands signals on to the program's process group.
INIT_PROGRAMS = ("tini", "docker-init")

# What IPython is told to load by itself.
EXTENSIONS = "InteractiveShellApp.extra_extensions"

# How long processes get to vanish after SIGKILL before it is called a failure; uninterruptible I/O may take a while.
KILL_LIMIT_S = 10.0


@dataclass(slots=True)
class Sandbox:
    """A sandbox that exists: its directories, its network namespace (an fd), its first process (once it runs)."""

    paths: SandboxPaths
    network_fd: int
    volumes: tuple[Volume, ...] = ()
    program: Process | None = None
    pidfd: int | None = None
    mounted: bool = False
    slirp: slirp.Slirp | None = None
    lower: Lower = HOST
    notes: list[str] = field(default_factory=list)
    group: Group = NO_GROUP

    @property
    def pid(self) -> int:
        """The host pid of the first process; InstanceExitedError when there is none."""
        if self.program is None:
            raise InstanceExitedError("the program has ended")
        return self.program.pid

    def own(self, pid: int) -> None:
        """Take note of the first process: just started, restored, or found running by a new keeper."""
        self.program = procfs.identify(pid)
        self.pidfd = procfs.open_pidfd(self.program) if self.program else None
        if self.program is None or self.pidfd is None:
            raise InstanceExitedError("the program ended as soon as it ran")

    def mount(self, *, gpu: bool = False, fill_dev: Callable[[Path], None] = lambda dev: None) -> None:
        """Mount its files in the calling process's mount namespace; `fill_dev` puts into /dev what a program had there.
        SandboxError."""
        self.mounted = True  # a mount that fails in the middle is taken away by `dispose`
        rootfs.mount_root(self.paths, self.volumes, gpu=gpu, lower=self.lower.root, fill_dev=fill_dev)

    def outside(self, path: str) -> Path:
        """Where a path of the program is in the mount namespace in which its files were mounted."""
        around = [volume for volume in self.volumes if is_below(Path(path), [volume.path])]
        if not around:
            return self.paths.mountpoint / path.lstrip("/")
        innermost = max(around, key=lambda volume: len(volume.path))
        return self.paths.volume(innermost.key).mountpoint / os.path.relpath(path, innermost.path)

    def make_layers(self, size: int) -> None:
        """Where its writable layers go: a disk of so many bytes of its own (0: none), made or found. SandboxError."""
        apart.make_directory(self.paths.root)
        if self.paths.image.exists():
            self.mount_layers()
        elif size:
            self.mounted = True
            disk.make(self.paths, size)
        with disk.inode_goal(self.paths) as goal:
            if goal >= 0:
                os.pwrite(goal, b"%d" % disk.last_numbers(self.paths), 0)
            rootfs.make_directories(self.paths, self.volumes)

    def mount_layers(self) -> None:
        """Mount the disk that it has, if it has one, in the calling process's mount namespace. SandboxError."""
        if not self.paths.image.exists():
            return
        self.mounted = True
        try:
            disk.mount(self.paths)
        except OSError as error:
            raise SandboxError(f"the program's disk cannot be mounted: {error.strerror}") from error

    def connect_outwards(self, allowed: Sequence[str] = (), *, has_rules: bool = False) -> Sequence[str]:
        """Let the program make connections through the host (slirp4netns), to those `HOST:PORT` alone where there are
        any; the names among them that have no address now. `has_rules`: its network has been restricted before.
        SandboxError."""
        missing = self._restrict(allowed) if allowed and not has_rules else ()
        self.slirp = slirp.Slirp(self.network_fd, dns=not allowed)
        return missing

    def _restrict(self, allowed: Sequence[str]) -> Sequence[str]:
        """Before there is a way out: what is let out of its network, and how its files have the names."""
        places = egress.parse(allowed)
        resolved = egress.resolve(places)
        egress.close(self.network_fd, places, resolved)
        egress.put_names(self.paths.mountpoint, places, resolved)
        return resolved.missing

    def is_alive(self) -> bool:
        """Whether the first process runs."""
        return procfs.is_alive(self.program)

    def signal(self, number: int) -> None:
        """Send a signal to the first process, which hands it on; InstanceExitedError."""
        if self.pidfd is None:
            raise InstanceExitedError("the program has ended")
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise InstanceExitedError("the program has ended") from None

    def kill(self) -> None:
        """End every process of the sandbox: the kernel kills a pid namespace with its first process."""
        with contextlib.suppress(InstanceExitedError):
            self.signal(signal.SIGKILL)
        if not self.wait(KILL_LIMIT_S):
            raise SandboxError(f"process {self.pid} cannot be killed: it hangs in the operating system")

    def wait(self, timeout_s: float) -> bool:
        """Whether the first process ended within that time."""
        deadline = time.monotonic() + timeout_s
        pause = 0.001
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        return True

    def reap(self) -> int | None:
        """The ended program's status as a shell has it; None where it is not this process's child."""
        if self.program is None:
            return None
        try:
            pid, status = os.waitpid(self.program.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def dispose(self, *, keep_files: bool = False) -> None:
        """Take mounts, fds and directories away; `keep_files` leaves the overlays' upper layers."""
        if self.slirp is not None:
            self.slirp.close()
            self.slirp = None
        if keep_files and self.paths.image.exists():
            disk.keep_log(self.paths)
        if self.mounted:
            rootfs.unmount_root(self.paths)
            self.mounted = False
        limits.remove(self.paths, group=self.group)
        held = (self.network_fd, self.pidfd, self.lower.fd)
        self.network_fd, self.pidfd, self.lower = -1, None, replace(self.lower, fd=-1)
        for fd in held:
            if fd is not None and fd >= 0:
                os.close(fd)
        if not keep_files:
            shutil.rmtree(self.paths.root, ignore_errors=True)
            return
        for path in (self.paths.work, self.paths.dev, self.paths.shm, self.paths.mountpoint, self.paths.criu):
            shutil.rmtree(path, ignore_errors=True)
        for volume in self.volumes:
            shutil.rmtree(self.paths.volume(volume.key).work, ignore_errors=True)


def launch(
    paths: SandboxPaths,
    spec: InstanceSpec,
    repo: Path,
    connection: bytes | None,
    *,
    kept: tuple[Volume, ...] | None = None,
    lower: Lower = HOST,
    before: Callable[[int], None] = lambda network_fd: None,
) -> Sandbox:
    """Start the spec's program in a new sandbox over `lower`; nothing is left when that fails. `before` is called with
    its network right before.

    `kept`: the volumes of an ended instance whose files these directories hold; the program finds them, and they stay
    even when it cannot be started.
    """
    environment = program_environment(spec, dict(os.environ))
    argv = program_argv(spec)
    sandbox = Sandbox(paths, ns.new_network(), lower=lower)
    try:
        needs = needed_directories(argv[0], environment)
        mountinfo = Path("/proc/self/mountinfo").read_text()
        volumes, copies = choose(spec.cwd, repo, mountinfo, needs, below=lower.root, given=host_folders.given(spec))
        volumes = volumes if kept is None else kept
        check_command(argv[0], spec.cwd, environment, lower.root, [volume.path for volume in volumes])
        sandbox.volumes = volumes
        sandbox.group = limits.make(paths, spec.limits)
        sandbox.group.apply()
        sandbox.group.limit_io(paths.root)
        sandbox.make_layers(spec.disk)
        sandbox.volumes = tuple(settled for volume in volumes if (settled := _settled(paths, volume)) is not None)
        rootfs.prepare_upper(paths, sandbox.volumes, copies, lower=lower.root)
        if lower.fresh is not None:
            lower.fresh(paths.upper)
        if connection is not None:
            _write_connection_file(paths, connection)
        init_program = find_init(lower.root, paths)
        if spec.terminal is not None:
            terminal.put(paths)
            environment[terminal.KEY_VARIABLE] = spec.terminal.key
            roots = dict.fromkeys([lower.root, Path("/")])
            argv = terminal.words(spec.terminal, argv, list(roots), spec.cwd, environment)
        sandbox.mount(gpu=spec.gpu)
        if spec.network == "slirp4netns":
            if not spec.egress:
                (paths.mountpoint / "etc/resolv.conf").write_text(slirp.RESOLV_CONF)
            if missing := sandbox.connect_outwards(spec.egress):
                raise SandboxError(f"{missing[0]} has no IPv4 address here, and may not be connected to")
        command = [init_program, "-g", "--", *argv]
        before(sandbox.network_fd)
        started = init.start(
            paths,
            sandbox.volumes,
            sandbox.network_fd,
            command,
            environment,
            spec.cwd,
            io_uring=spec.io_uring,
            user=spec.user,
            groups=sandbox.group.directories,
            privileged=spec.privileged,
            filtered=bool(spec.egress),
        )
        sandbox.own(started)
    except BaseException:
        if sandbox.program is not None:
            sandbox.kill()
        sandbox.dispose(keep_files=kept is not None)
        raise
    return sandbox


def _settled(paths: SandboxPaths, volume: Volume) -> Volume | None:
    """The volume as it can be had here: where no overlay stands on it, read-only, and a scratch directory, in which a
    program has to write, not at all. SandboxError for a folder of the host that is not there any more."""
    if volume.kind != "overlay":
        rootfs.require_folder(volume)
        return volume
    if rootfs.overlay_fits(paths, volume):
        return volume
    return None if volume.path in SCRATCH else Volume(volume.key, volume.path, "readonly")


def check_command(
    program: str,
    cwd: str,
    environment: Mapping[str, str],
    root: Path = Path("/"),
    volumes: Sequence[str] = (),
) -> None:
    """CommandError where there is nothing to start: said here, because inside only the log would hear of it. `volumes`
    are shown as this machine has them, whatever `root` has there."""
    on_base = root != Path("/")
    where = " in the base" if on_base else ""
    own = Path("/") if not on_base or is_below(Path(cwd), volumes) else root
    at = inside(own, cwd)
    if at is None or not at.is_dir():
        raise CommandError(f"the working directory {cwd} does not exist{where}")
    roots = dict.fromkeys([root, *([Path("/")] if on_base and _may_be_shown(program, cwd, volumes) else [])])
    if all(program_inside(place, program, cwd, environment) is None for place in roots):
        raise CommandError(f"there is no command `{program}`{where}")


def _may_be_shown(program: str, cwd: str, volumes: Sequence[str]) -> bool:
    """Whether a program could lie on a volume: on the search path, none is looked for there."""
    return is_below(Path(os.path.join(cwd, program)), volumes) if "/" in program else bool(volumes)


def needed_directories(program: str, environment: Mapping[str, str]) -> list[Path]:
    """Where the program's environment and its side of the guest protocol lie, should that be under /tmp."""
    package = Path(PYTHON_PATH).parents[2]
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        return [package]
    directory = Path(found).parent
    return [package, directory.parent if directory.name == "bin" else directory]


def find_init(root: Path, paths: SandboxPaths) -> str:
    """The path inside of an init program; a base without one gets this machine's, in the layer above. SandboxError."""
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    for name in INIT_PROGRAMS:
        path = program_inside(root, name, "/", environment)
        if path:
            return path
    for name in INIT_PROGRAMS:
        path = shutil.which(name)
        if path:
            copy = paths.upper / INIT_INSIDE.lstrip("/")
            shutil.copyfile(path, copy)
            copy.chmod(0o755)
            return INIT_INSIDE
    raise SandboxError("no init program for the sandbox was found", hint="install the package `tini`")


def program_argv(spec: InstanceSpec) -> list[str]:
    """The command line inside. An IPython kernel loads guest/kernels.py. Its history file is left
    out where the program has no disk of its own: a saved program's open sqlite file is read-only when it comes back
    with another inode number."""
    argv = [word.replace("{connection_file}", CONNECTION_FILE_INSIDE) for word in spec.argv]
    if spec.kind != "kernel" or not any("ipykernel" in word for word in argv):
        return argv
    if not spec.disk and not any("HistoryManager" in word for word in argv):
        argv.append("--HistoryManager.enabled=False")
    if not any(EXTENSIONS in word for word in argv):
        argv.append(f"--{EXTENSIONS}=ijfs.guest.kernels")
    return argv


def program_environment(spec: InstanceSpec, inherited: dict[str, str]) -> dict[str, str]:
    """The environment inside: the caller's, the spec's, and what a program needs to speak with its keeper."""
    environment = {**(inherited if spec.inherit_env else {}), **spec.env}
    # It would be in every snapshot of the program.
    hidden = {*SECRET_VARIABLES, *spec.secrets}
    environment = {name: value for name, value in environment.items() if name not in hidden}
    if spec.gpu:
        environment = launch_environment(environment, nccl_safe=spec.nccl_safe, offline=spec.network == "none")
    environment.setdefault("PATH", os.defpath)
    environment[INSTANCE_VARIABLE] = spec.name
    environment[ENVIRONMENT_VARIABLE] = f"127.0.0.1:{GUEST_PORT}"
    paths = [PYTHON_PATH, *([TORCH_PATH] if spec.gpu else []), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if spec.kind == "kernel":
        # ipykernel ends when its parent is not the one named here; pid 1 is what it sees in every sandbox.
        environment["JPY_PARENT_PID"] = "1"
    return environment


def _write_connection_file(paths: SandboxPaths, connection: bytes) -> None:
    path = paths.upper / CONNECTION_FILE_INSIDE.lstrip("/")
    path.touch(mode=0o600)
    path.write_bytes(connection)
