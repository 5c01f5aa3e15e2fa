"""The extension of Jupyter servers that the panel in JupyterLab speaks with: an API below `/ijfs/api`.

    ../manager.py how the server manages kernels that are instances
    requests.py   what may be asked, each request a class
    tree.py       what there is to see of a repository
    kernels.py    which instance a kernel of this server is, and which notebook it belongs to
    api.py        what is looked at; programs.py, forks.py and names.py what is done
    events.py     what happens, on Jupyter's event bus
    handlers.py   HTTP around it: who may, what is read, how an error is answered

The wheel enables it (etc/jupyter/jupyter_server_config.d). docs/jupyter.md has what a user sees of it.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "ijfs.jupyter.server"}]


def _link_jupyter_server_extension(app: Any) -> None:
    """Before a Jupyter server makes its managers: have it make ours."""
    from ijfs.jupyter.manager import take_part

    take_part(app)


def _load_jupyter_server_extension(app: Any) -> None:
    """Add the handlers to a Jupyter server."""
    from ijfs.jupyter.server.handlers import add_handlers

    add_handlers(app)
