"""Fixtures of the Jupyter tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_peer import Peer
from jupyter_core.utils import ensure_event_loop
from jupyter_env import JupyterEnv


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_jupyter() -> Iterator[None]:
    """jupyter_client's blocking calls share an event loop per thread that nobody closes; warnings are errors here."""
    yield
    ensure_event_loop().close()


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    peer = Peer()
    monkeypatch.setenv("IJFS_GUEST", peer.address)
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def jupyter_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterEnv]:
    """A Jupyter home with the sandboxed kernel spec installed and a repository; empty of processes when it ends."""
    with pytest.MonkeyPatch.context() as patch:
        jupyter_env = JupyterEnv(tmp_path_factory.mktemp("jupyter"), patch)
        yield jupyter_env
        jupyter_env.close()
