"""Fixtures of the Jupyter tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_peer import Peer


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    peer = Peer()
    monkeypatch.setenv("IJFS_GUEST", peer.address)
    yield peer
    peer.close()
