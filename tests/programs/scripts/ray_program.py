import os

import numpy
import ray


@ray.remote
def double(x):
    return x * 2


@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def next(self):
        self.n += 1
        return self.n


def begin():
    global counter, large
    ray.init(
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        logging_level="ERROR",
        _temp_dir=os.path.abspath("ray"),
    )
    counter, large = Counter.remote(), ray.put(numpy.arange(1_000_000))
    assert ray.get(double.remote(4), timeout=120) == 8


def ask(count):
    assert ray.get(counter.next.remote(), timeout=60) == count
    assert ray.get(double.remote(4), timeout=60) == 8
    assert ray.get(large, timeout=10).sum() == 499999500000
