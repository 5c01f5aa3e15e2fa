"""Where bytes are cut into chunks. Called by write/chunker.py, which has the sizes.

`gear_cuts` checks its arguments, then runs in C without the GIL. reference.py has its slow twin.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

cdef extern from "bytes.h" nogil:
    size_t ijfs_gear_cuts(const uint8_t *data, size_t n, size_t minimum, size_t maximum, uint64_t threshold, uint64_t key,
                          uint64_t *cuts)


def gear_cuts(const uint8_t[::1] data, size_t minimum, size_t maximum, uint64_t threshold, uint64_t key=0):
    """Ends of the content-defined chunks of `data`, ascending, the last one len(data); [] for no bytes.

    `minimum` and `maximum` are chunk sizes in bytes, multiples of 8; a cut comes after a word whose gear hash is at least
    `threshold`, so that one word in 2**64 / (2**64 - threshold) is one. `key` is XORed to each word. docs/format.md has the definition.
    """
    cdef size_t n = data.shape[0], found = 0, i
    if minimum < 8 or minimum % 8 or maximum % 8 or maximum < minimum:
        raise ValueError(f"no chunk sizes: {minimum}, {maximum}")
    if n == 0:
        return []
    cdef uint64_t *cuts = <uint64_t *>malloc((n // minimum + 2) * sizeof(uint64_t))
    if cuts == NULL:
        raise MemoryError
    try:
        with nogil:
            found = ijfs_gear_cuts(&data[0], n, minimum, maximum, threshold, key, cuts)
        return [cuts[i] for i in range(found)]
    finally:
        free(cuts)
