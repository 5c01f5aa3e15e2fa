"""Random numbers of their own for copies of one program; called by hooks.py in a program restored beside others.

Every copy comes back with the generators as they were saved, and would draw the same keys, names and shuffles. What is
seeded here are the generators that a whole process shares. Generator objects that the program made itself
(`random.Random(7)`, `numpy.random.default_rng(7)`) go on as they were: who made them wants to know what they say.
`uuid.uuid4`, `secrets` and `os.urandom` ask the kernel and are never the same.
"""

import os
import sys
from typing import Any


def reseed() -> None:
    """Seed the shared generators of the modules that are loaded: random, tempfile, numpy, torch, OpenSSL (ssl)."""
    random = _loaded("random")
    if random is not None:
        random.seed()
    tempfile = _loaded("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # made anew at the next name, as after os.fork()
    numpy_random = _loaded("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = _loaded("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()
    ssl = _loaded("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(64), 64.0)


def _loaded(name: str) -> Any:
    return sys.modules.get(name)
