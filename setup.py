"""Compile the hot loops of the storage engine, the pager and a freeze, and what is loaded into CRIU; everything else
about the package is in pyproject.toml.

Every .pyx in SOURCES becomes an extension module beside it, so adding one needs no change here.
Called by pip (install), by tools/setup (rebuild in place) and by tools/check-native (a build with AddressSanitizer).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = Path("engine/ijfs_engine/_native")
SOURCES = {
    "ijfs_engine._native": NATIVE,
    "ijfs.live.pager": Path("ijfs/live/pager"),
    "ijfs.live.checkpoint": Path("ijfs/live/checkpoint"),
}

# Never -march=native: a wheel or a copied checkout must run on the oldest x86-64. Code that wants AVX2 asks the CPU.
OPTIMISED = ["-O3", "-g1"]
# -O1 keeps the line numbers of a report right; frame pointers give it a call stack.
SANITISED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]

# What CRIU loads is no module of Python's, and CRIU may have a C library of its own: it is linked with nothing.
FREESTANDING = ["-O2", "-ffreestanding", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-fcf-protection=none", "-Wall"]

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def extensions() -> list[Extension]:
    """One extension per .pyx; a changed .h or .pxd rebuilds them all, which takes seconds."""
    sanitise = os.environ.get("IJFS_SANITIZE") == "1"
    headers = sorted(str(path) for pattern in ("*.h", "*.pxd") for path in NATIVE.glob(pattern))
    return [
        Extension(
            f"{package}.{source.stem}",
            [str(source)],
            depends=headers,
            include_dirs=[str(NATIVE)],
            extra_compile_args=SANITISED if sanitise else OPTIMISED,
            extra_link_args=["-fsanitize=address,undefined"] if sanitise else [],
        )
        for package, directory in SOURCES.items()
        for source in sorted(directory.glob("*.pyx"))
    ]


def of_criu(name: str) -> Extension:
    """One of the pieces of C that CRIU loads (ijfs/live/criu/command.py)."""
    directory = Path("ijfs/live/criu")
    return Extension(
        f"ijfs.live.criu.{name}",
        [str(directory / f"{name}.c")],
        depends=[str(directory / "tracing.h")],
        extra_compile_args=FREESTANDING,
        extra_link_args=["-nostdlib"],
    )


def terminal_server() -> Extension:
    """What has a sandbox's terminal (ijfs/live/sandbox/terminal_server.c): no library, but a program that is run."""
    name = "ijfs.live.sandbox.terminal_server"
    source = f"{name.replace('.', '/')}.c"
    entry = ["-nostdlib", "-Wl,-e,ijfs_terminal_start"]
    return Extension(name, [source], extra_compile_args=FREESTANDING, extra_link_args=entry)


CORES = len(os.sched_getaffinity(0))
# The generated C goes under build/, so that a reader of the engine sees only what people wrote.
setup(
    ext_modules=[
        *cythonize(extensions(), build_dir="build/cython", compiler_directives=DIRECTIVES, nthreads=CORES),
        of_criu("restart_calls"),
        of_criu("record_locks"),
        terminal_server(),
    ],
    options={"build_ext": {"parallel": CORES}},
)
