"""The engine's hot loops over bytes: fingerprints, cuts, XOR, float planes, copies. Called by ingest, codec and reader.

Every function takes whole buffers (anything contiguous with the buffer protocol), checks all lengths and offsets here,
once, and then runs in C without the GIL. reference.py holds a slow twin of each, the oracle of tests/engine/test_native.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.types cimport off_t
from posix.unistd cimport pread

cdef extern from "bytes.h" nogil:
    enum:
        IJFS_PAGE
        IJFS_KEY_BYTES
        IJFS_GROUP
        IJFS_ZERO
        IJFS_SAME
        IJFS_FRESH
    int ijfs_best_path()
    bint ijfs_is_zero(const uint8_t *p, size_t n)
    void ijfs_scan(int path, const uint8_t *pages, size_t count, const uint8_t *key, uint8_t *prints, uint8_t *kinds)
    size_t ijfs_fold(int path, const uint8_t *prints, const uint64_t *pieces, size_t n_pieces, const uint8_t *key,
                     uint8_t *hints, uint8_t *groups)
    size_t ijfs_gear_cuts(const uint8_t *data, size_t n, size_t minimum, size_t maximum, uint64_t threshold, uint64_t *cuts)
    size_t ijfs_changed_lines(const uint8_t *a, const uint8_t *b, size_t n)
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
    void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)
    void ijfs_join_planes(const uint8_t *planes, const uint8_t *rest, size_t n, int width, int tops, uint8_t *data)
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)

PAGE = IJFS_PAGE
KEY_BYTES = IJFS_KEY_BYTES
GROUP = IJFS_GROUP
ZERO = IJFS_ZERO
SAME = IJFS_SAME
FRESH = IJFS_FRESH

cdef int BEST_PATH = ijfs_best_path()
# A read this long is still in the L2 cache when its pages are fingerprinted, so memory is read once, not twice.
cdef size_t READ_PAGES = 64


def fingerprint_paths():
    """The fingerprint implementations this processor can run: 0 portable C, 1 PCLMULQDQ, 2 VPCLMULQDQ with AVX-512."""
    return list(range(BEST_PATH + 1))


cdef int checked_path(int path) except -1:
    if path < 0:
        return BEST_PATH
    if path > BEST_PATH:
        raise ValueError(f"this processor has no fingerprint path {path}")
    return path


cdef int check_key(const uint8_t[::1] key) except -1:
    if <size_t>key.shape[0] != IJFS_KEY_BYTES:
        raise ValueError(f"the fingerprint key has {key.shape[0]} bytes, not {IJFS_KEY_BYTES}")
    return 0


cdef int check_scan(size_t count, const uint8_t[::1] key, uint8_t[::1] prints, uint8_t[::1] kinds) except -1:
    check_key(key)
    if <size_t>prints.shape[0] != 16 * count or <size_t>kinds.shape[0] != count:
        raise ValueError(f"{count} pages need {16 * count} bytes of fingerprints and {count} of kinds")
    return 0


def scan_pages(const uint8_t[::1] pages, const uint8_t[::1] key, uint8_t[::1] prints, uint8_t[::1] kinds, *, int path=-1):
    """Fingerprint n pages into `prints` (16 n bytes; zeros for a page of zeros) and class them in `kinds` (n bytes):
    ZERO or FRESH. ValueError when a length does not fit."""
    cdef size_t count = pages.shape[0] // IJFS_PAGE
    if <size_t>pages.shape[0] != count * IJFS_PAGE:
        raise ValueError(f"{pages.shape[0]} bytes are no whole number of pages")
    check_scan(count, key, prints, kinds)
    path = checked_path(path)
    if count == 0:
        return
    with nogil:
        ijfs_scan(path, &pages[0], count, &key[0], &prints[0], &kinds[0])


def scan_file(int fd, uint64_t offset, const uint8_t[::1] key, uint8_t[::1] prints, uint8_t[::1] kinds, uint8_t[::1] pages):
    """`scan_pages` over len(kinds) pages of a file from byte `offset`, which are read into `pages`.

    Piece by piece, each fingerprinted while it is in the cache. OSError from read, EOFError if the file ends before that.
    """
    cdef size_t count = kinds.shape[0], done = 0, step = 0, got = 0
    cdef ssize_t n = 0
    check_scan(count, key, prints, kinds)
    if <size_t>pages.shape[0] != count * IJFS_PAGE:
        raise ValueError(f"{count} pages need {count * IJFS_PAGE} bytes, not {pages.shape[0]}")
    if count == 0:
        return
    cdef uint8_t *piece
    cdef int path = BEST_PATH, error = 0
    with nogil:
        while done < count and not error:
            step = min(READ_PAGES, count - done)
            piece = &pages[done * IJFS_PAGE]
            got = 0
            while got < step * IJFS_PAGE:
                n = pread(fd, piece + got, step * IJFS_PAGE - got, <off_t>(offset + done * IJFS_PAGE + got))
                if n < 0 and errno == EINTR:
                    continue
                if n <= 0:
                    error = errno if n < 0 else -1
                    break
                got += n
            if error:
                break
            ijfs_scan(path, piece, step, &key[0], &prints[16 * done], &kinds[done])
            done += step
    if error == -1:
        raise EOFError(f"the file ends before byte {offset + count * IJFS_PAGE}")
    if error:
        raise OSError(error, "read failed")


def fold_prints(const uint8_t[::1] prints, const uint64_t[::1] pieces, const uint8_t[::1] key, *, int path=-1):
    """(hints, group fingerprints) of n pages from their fingerprints (16 n bytes).

    `pieces` says which pages they are: (first page number, pages), flat, in order. A hint is two bytes per page, zero for
    pages of zeros alone; a group fingerprint is 16 bytes for the pages, following one another here, of a block of GROUP
    aligned page numbers.
    """
    cdef size_t count = prints.shape[0] // 16, n_pieces = pieces.shape[0] // 2, total = 0, found = 0, i
    check_key(key)
    path = checked_path(path)
    for i in range(n_pieces):
        if pieces[2 * i + 1] > count - total:
            raise ValueError("fold_prints: the pieces hold more pages than there are fingerprints")
        total += pieces[2 * i + 1]
    if pieces.shape[0] % 2 or total != count or <size_t>prints.shape[0] != 16 * count:
        raise ValueError(f"fold_prints: {prints.shape[0]} bytes of fingerprints, pieces of {total} pages")
    if count == 0:
        return b"", b""
    hints, groups = bytearray(2 * count), bytearray(16 * count)
    cdef uint8_t[::1] hints_at = hints, groups_at = groups
    with nogil:
        found = ijfs_fold(path, &prints[0], &pieces[0], n_pieces, &key[0], &hints_at[0], &groups_at[0])
    return bytes(hints), bytes(memoryview(groups)[:16 * found])


def zero_kinds(const uint8_t[::1] data, uint8_t[::1] kinds):
    """Class the pages of `data` (the last may be short) as ZERO or FRESH, without fingerprints."""
    cdef size_t n = data.shape[0], count = (n + IJFS_PAGE - 1) // IJFS_PAGE, i
    if <size_t>kinds.shape[0] != count:
        raise ValueError(f"{n} bytes need {count} kinds, not {kinds.shape[0]}")
    with nogil:
        for i in range(count):
            kinds[i] = (IJFS_ZERO if ijfs_is_zero(&data[i * IJFS_PAGE], min(<size_t>IJFS_PAGE, n - i * IJFS_PAGE))
                        else IJFS_FRESH)


def is_zero(const uint8_t[::1] data):
    """Whether every byte is zero (true of no bytes)."""
    cdef bint answer = True
    if data.shape[0]:
        with nogil:
            answer = ijfs_is_zero(&data[0], data.shape[0])
    return answer


def runs(const uint8_t[::1] kinds):
    """The maximal runs of equal kinds, as (first, count, kind), in order."""
    cdef Py_ssize_t n = kinds.shape[0], start = 0, i
    found = []
    for i in range(1, n + 1):
        if i == n or kinds[i] != kinds[start]:
            found.append((start, i - start, kinds[start]))
            start = i
    return found


def gear_cuts(const uint8_t[::1] data, size_t minimum, size_t maximum, uint64_t threshold):
    """Ends of the content-defined chunks of `data`, ascending, the last one len(data); [] for no bytes.

    `minimum` and `maximum` are chunk sizes in bytes, multiples of 8; a cut comes after a word whose gear hash is at least
    `threshold`, so that one word in 2**64 / (2**64 - threshold) is one. docs/format.md has the definition.
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
            found = ijfs_gear_cuts(&data[0], n, minimum, maximum, threshold, cuts)
        return [cuts[i] for i in range(found)]
    finally:
        free(cuts)


def changed_lines(const uint8_t[::1] a, const uint8_t[::1] b, uint8_t[::1] changed):
    """changed[i] = how many of the 64 cache lines of page i differ between a and b, which hold len(changed) pages."""
    cdef size_t count = changed.shape[0], i
    if not (<size_t>a.shape[0] == <size_t>b.shape[0] == count * IJFS_PAGE):
        raise ValueError(f"changed_lines: {a.shape[0]} and {b.shape[0]} bytes for {count} pages")
    with nogil:
        for i in range(count):
            changed[i] = ijfs_changed_lines(&a[i * IJFS_PAGE], &b[i * IJFS_PAGE], IJFS_PAGE)


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


def copy_runs(const uint8_t[::1] source, uint8_t[::1] target, const uint64_t[::1] triples):
    """Copy pieces: triples are (source offset, target offset, length), flat, in bytes. ValueError if one leaves a buffer."""
    cdef size_t count = triples.shape[0] // 3, i
    cdef uint64_t sources = source.shape[0], targets = target.shape[0], a, b, n
    cdef bint bad = triples.shape[0] % 3 != 0
    with nogil:
        for i in range(count):
            a, b, n = triples[3 * i], triples[3 * i + 1], triples[3 * i + 2]
            if a > sources or n > sources - a or b > targets or n > targets - b:
                bad = True
        if not bad:
            for i in range(count):
                if triples[3 * i + 2]:
                    memcpy(&target[triples[3 * i + 1]], &source[triples[3 * i]], triples[3 * i + 2])
    if bad:
        raise ValueError("copy_runs: a piece lies outside its buffer")


def join_into(parts, uint8_t[::1] target, size_t at):
    """Copy buffers one behind the other to `target` from `at` on; where they end. ValueError if there is no room."""
    cdef size_t n = len(parts), i = 0, end = at, room = target.shape[0]
    cdef Py_buffer *views = <Py_buffer *>malloc((n + 1) * sizeof(Py_buffer))
    cdef size_t held = 0
    if views == NULL:
        raise MemoryError
    try:
        for part in parts:
            PyObject_GetBuffer(part, &views[held], PyBUF_SIMPLE)
            held += 1
            end += views[held - 1].len
        if at > room or end > room:
            raise ValueError(f"join_into: {end - at} bytes do not fit at {at} of {room}")
        with nogil:
            for i in range(held):
                memcpy(&target[0] + at, views[i].buf, views[i].len)
                at += views[i].len
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
        free(views)
    return end
