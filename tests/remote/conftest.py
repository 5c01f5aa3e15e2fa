"""Fixtures of the tests against a real object store: skipped but for `make test-remote`."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from remote_store import RGW, make_bucket, start


@pytest.fixture(scope="session")
def store() -> Iterator[None]:
    """The gateway, gone after the tests."""
    if os.environ.get("IJFS_TEST_RGW") != "1":
        pytest.skip("needs Ceph's gateway: `make test-remote` brings it up")
    variables = start()
    os.environ.update(variables)
    yield
    for name in variables:
        os.environ.pop(name, None)
    subprocess.run([sys.executable, RGW, "stop"], check=True, timeout=120)


@pytest.fixture
def url(store: None) -> str:
    """A bucket of one's own."""
    return make_bucket(f"t-{uuid.uuid4().hex[:20]}") + "/tree"
