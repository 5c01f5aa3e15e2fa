"""One of something for each thread: for what takes long to make and serves one thread at a time."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(threading.local, Generic[T]):
    """`value` is made by `make` in each thread that asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.value = make()
