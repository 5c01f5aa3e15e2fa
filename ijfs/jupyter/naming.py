"""What an instance started by Jupyter is called: after its notebook, so that `ijfs ps` and branches read well."""

from __future__ import annotations

import re
from pathlib import PurePath

MAX_STEM = 40
"""Leaves room for the suffix in an instance's 63 characters."""


def instance_name(session: str, kernel_name: str, kernel_id: str) -> str:
    """The notebook's name (or the kernel spec's) and the start of the kernel's id, which keeps two apart.

    `session` is JPY_SESSION_NAME: a Jupyter server puts the notebook's path there; other front ends, anything or "".
    """
    stem = _slug(PurePath(session).stem) or _slug(kernel_name) or "kernel"
    return f"{stem[:MAX_STEM].rstrip('.-')}-{_slug(kernel_id)[:8]}"


def _slug(text: str) -> str:
    """Lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit; "" when nothing is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")
