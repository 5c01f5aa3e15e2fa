"""Found first on the PYTHONPATH of GPU programs: what ijfs does in them without a line of their code.

Python imports `sitecustomize` at its start. Once torch is imported, its cached blocks are given back before saves; this
waits for torch by an import hook, so that a process without torch pays nothing; vLLM's allocator is met in the same
way. A child that is forked after CUDA was
initialised lets go of the GPU's files. At last the environment's own sitecustomize runs, which this one stands before.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds a module like everybody else, but has something done with it after it has run."""

    def __init__(self, name, then):  # type: ignore[no-untyped-def]
        self._name, self._then = name, then

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_listen(module):  # type: ignore[no-untyped-def]
            run(module)
            self._then(module)

        spec.loader.exec_module = run_and_listen  # type: ignore[method-assign]
        return spec


def _sleep_in_ordinary_memory(module) -> None:  # type: ignore[no-untyped-def]
    """vLLM's sleep mode keeps weights in pinned memory, which is shared memory, rounded up to a power of two: a restore
    has to wait for all of it. In ordinary memory they are as large as they are, and come in with the rest."""
    if hasattr(module, "PIN_MEMORY"):
        module.PIN_MEMORY = False


def _listen(module) -> None:  # type: ignore[no-untyped-def]
    try:
        import ijfs  # noqa: F401
        from ijfs.guest import hooks

        hooks.prepare()
    except Exception as error:  # a program must not fail because its snapshots would be larger
        print(f"ijfs: no hook for torch: {error}", file=sys.stderr)


def _let_go_in_child() -> None:
    """In a forked child. Nothing is loaded in the parent for it, and next to nothing in a child of one without CUDA."""
    try:
        if any(_is_cuda(entry) for entry in os.listdir("/proc/self/fd")):
            import ijfs  # noqa: F401
            from ijfs.guest import forked

            forked.let_go()
    except Exception as error:  # a program must not fail because it could not be saved
        print(f"ijfs: the GPU's files stay open in a forked child: {error}", file=sys.stderr)


def _is_cuda(descriptor: str) -> bool:
    try:
        return os.readlink("/proc/self/fd/" + descriptor).startswith("/dev/nvidia-uvm")
    except OSError:
        return False


def _run_the_environments_own() -> None:
    others = [path for path in sys.path if os.path.abspath(path) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


os.register_at_fork(after_in_child=_let_go_in_child)
sys.meta_path.insert(0, _WhenImported("torch", _listen))
sys.meta_path.insert(0, _WhenImported("vllm.device_allocator.cumem", _sleep_in_ordinary_memory))
_run_the_environments_own()
