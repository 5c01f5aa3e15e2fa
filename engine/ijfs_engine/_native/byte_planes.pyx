"""Arrays of numbers as bytes: their differences, their planes, how noisy each is. Called by format/chunk_codec.py.

Every function takes whole buffers (anything contiguous with the buffer protocol), checks all lengths and offsets here,
once, and then runs in C without the GIL. tests/engine/test_native.py compares them with slow twins in reference.py.
"""

from libc.stdint cimport uint8_t

cdef extern from "bytes.h" nogil:
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
    void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)
    void ijfs_join_planes(const uint8_t *planes, const uint8_t *rest, size_t n, int width, int tops, uint8_t *data)
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)


def xor_into(uint8_t[::1] out, const uint8_t[::1] b):
    """out ^= b; equal lengths."""
    if out.shape[0] != b.shape[0]:
        raise ValueError(f"xor_into: {out.shape[0]} and {b.shape[0]} bytes")
    if out.shape[0]:
        with nogil:
            ijfs_xor_into(&out[0], &b[0], out.shape[0])


cdef int check_planes(size_t size, int width, int tops, size_t planes, size_t rest) except -1:
    if width not in (2, 4, 8) or not 1 <= tops <= width:
        raise ValueError(f"no planes: {tops} of words of {width} bytes")
    if planes != size // width * tops or planes + rest != size:
        raise ValueError(f"{tops} planes of {size} bytes in words of {width} do not fill {planes} and {rest} bytes")
    return 0


def split_planes(const uint8_t[::1] data, int width, int tops, uint8_t[::1] planes, uint8_t[::1] rest):
    """Part words of `width` bytes (2, 4 or 8) into their `tops` most significant bytes and the others.

    `planes` gets the most significant bytes of all words, then the next ones, and so on: len(data) // width * tops bytes.
    `rest` gets what is left of each word in order, and the tail of the data.
    """
    check_planes(data.shape[0], width, tops, planes.shape[0], rest.shape[0])
    if data.shape[0]:
        with nogil:
            ijfs_split_planes(&data[0], data.shape[0], width, tops, &planes[0], &rest[0])


def join_planes(const uint8_t[::1] planes, const uint8_t[::1] rest, int width, int tops, uint8_t[::1] data):
    """The inverse of `split_planes`, with the same lengths."""
    check_planes(data.shape[0], width, tops, planes.shape[0], rest.shape[0])
    if data.shape[0]:
        with nogil:
            ijfs_join_planes(&planes[0], &rest[0], data.shape[0], width, tops, &data[0])


ijfs_make_logs()


def byte_entropies(const uint8_t[::1] data, size_t samples, const uint8_t[::1] other=None):
    """Bits of entropy of the bytes at each position modulo 8 (eight floats), over about `samples` words spread evenly.

    With `other`, as long as data: of data ^ other.
    """
    cdef size_t j
    cdef double bits[8]
    if other is not None and other.shape[0] != data.shape[0]:
        raise ValueError(f"byte_entropies: {data.shape[0]} and {other.shape[0]} bytes")
    if data.shape[0] < 8:
        return (0.0,) * 8
    cdef const uint8_t *other_at = &other[0] if other is not None else NULL
    with nogil:
        ijfs_entropies(&data[0], other_at, data.shape[0], samples, bits)
    return tuple([bits[j] for j in range(8)])
