"""What an instance started by Jupyter is called: after its notebook, so that `ijfs ps` and branches read well."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

MAX_STEM = 40
"""Leaves room for the suffix in an instance's 63 characters."""


def instance_name(session: str, kernel_name: str, kernel_id: str) -> str:
    """The notebook's name (or the kernel spec's) and the start of the kernel's id, which keeps two apart.

    `session` is JPY_SESSION_NAME: a Jupyter server puts the notebook's path there; other front ends, anything or "".
    """
    stem = _slug(PurePath(session).stem) or _slug(kernel_name) or "kernel"
    return f"{stem[:MAX_STEM].rstrip('.-')}-{_slug(kernel_id)[:8]}"


def notebook_of_command(words: Sequence[str]) -> str:
    """The notebook that this process was started for: `papermill study.ipynb out.ipynb`, `jupyter nbconvert --execute
    study.ipynb`; "" where its command line names none, or several."""
    after_output = {at + 1 for at, word in enumerate(words) if word in ("--output", "-o")}
    named = [
        word
        for at, word in enumerate(words)
        if word.endswith(".ipynb") and not word.startswith("-") and at not in after_output
    ]
    if words and "papermill" in words[0]:
        del named[1:]  # what it writes
    return named[0] if len(named) == 1 else ""


def _slug(text: str) -> str:
    """Lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit; "" when nothing is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")
