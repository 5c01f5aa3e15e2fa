"""Ceph's gateway (tools/rgw.py) for tests and campaigns: brought up, and buckets in it."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from datetime import timedelta
from pathlib import Path

RGW = Path(__file__).parents[2] / "tools/rgw.py"


def start() -> dict[str, str]:
    """Bring the store up, or up again; how to reach it."""
    done = subprocess.run([sys.executable, RGW, "start"], check=True, capture_output=True, text=True, timeout=600)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def make_bucket(name: str) -> str:
    """A new bucket; its URL. Uses the variables that `start` gave."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(name, client_options={"allow_http": True})
    url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()
    return f"s3://{name}"
