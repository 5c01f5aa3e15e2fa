"""Found first on the PYTHONPATH of every program in a sandbox: hands over to the installed `ijfs` package.

The program's Python is often not the one ijfs is installed in, and putting that one's site-packages on its
path would mix two environments. So the path gets this directory, which holds this file alone. It loads the
package it lies in under its own name, in its own place; a copy of ijfs in the program's own environment stays
unused, so that the program's side of the guest protocol is always of the keeper's version.
"""

import importlib.util
import os
import sys

_package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_spec = importlib.util.spec_from_file_location(
    "ijfs", os.path.join(_package, "__init__.py"), submodule_search_locations=[_package]
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["ijfs"] = _module  # `import ijfs` returns what stands here when this file has run
_spec.loader.exec_module(_module)
