"""Contexts: several sets of variables in one kernel. The code here runs in the kernel, as a cell that leaves no names.

A context is a module of its own in the kernel's process, not a kernel of its own: so it rides in snapshots and forks
with everything that its variables hold. What belongs to a process (imports, threads, `os.environ`) is common to all,
and cells of different contexts wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENTER = """
import os, sys, types
ip = get_ipython()
modules = ip.__dict__.setdefault("_ijfs_contexts", {"": ip.user_module})
if ident not in modules or fresh:
    modules[ident] = types.ModuleType("__main__")
if ip.user_module is not modules[ident]:
    ip.user_module = sys.modules["__main__"] = modules[ident]
    ip.user_ns = ip.user_module.__dict__
    if "get_ipython" not in ip.user_ns:
        ip.init_user_ns()
        ip.user_ns["__builtins__"] = __builtins__
    if cwd:
        os.chdir(cwd)
ip.__dict__["_ijfs_environ"] = {name: os.environ.get(name) for name in env}
os.environ.update(env)
"""

_LEAVE = """
import os
for name, value in get_ipython().__dict__.pop("_ijfs_environ", {}).items():
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
"""

_FORGET = """get_ipython().__dict__.get("_ijfs_contexts", {}).pop(ident, None)"""


def enter(ident: str, cwd: str, env: Mapping[str, str], *, fresh: bool = False) -> str:
    """The cell that makes this the context of the next one; "" is the kernel's own. `env`: variables for the next cell;
    `fresh`: without what it has had."""
    return _cell(_ENTER, ident=ident, cwd=cwd, env=dict(env), fresh=fresh)


def leave() -> str:
    """The cell that takes the variables of the one before back."""
    return _cell(_LEAVE)


def forget(ident: str) -> str:
    """The cell that lets a context go."""
    return _cell(_FORGET, ident=ident)


def _cell(source: str, **names: object) -> str:
    """It has the shell's `get_ipython` whatever the context before it did to that name."""
    given = "".join(f", {name!r}: {value!r}" for name, value in names.items())
    return f"exec({source!r}, {{'get_ipython': __import__('IPython').get_ipython{given}}})"
