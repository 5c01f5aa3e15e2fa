"""Found first on the PYTHONPATH of GPU programs: once torch is imported, its cached blocks are given back before saves.

Python imports `sitecustomize` at its start. This one waits for torch by an import hook, so that a process without
torch pays nothing, and then runs the environment's own sitecustomize, which it stands in front of.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class _WhenTorchIsImported(importlib.abc.MetaPathFinder):
    """Finds torch like everybody else, but has the built-in hook of ijfs.guest.hooks started after it has run."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_listen(module):  # type: ignore[no-untyped-def]
            run(module)
            _listen()

        spec.loader.exec_module = run_and_listen  # type: ignore[method-assign]
        return spec


def _listen() -> None:
    try:
        import ijfs  # noqa: F401
        from ijfs.guest import hooks

        hooks.prepare()
    except Exception as error:  # a program must not fail because its snapshots would be larger
        print(f"ijfs: no hook for torch: {error}", file=sys.stderr)


def _run_the_environments_own() -> None:
    others = [path for path in sys.path if os.path.abspath(path) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _WhenTorchIsImported())
_run_the_environments_own()
