"""Pages of memory: which are zeros, which differ, and their fingerprints. Called by write/ when an image is saved.

Every function takes whole buffers (anything contiguous with the buffer protocol), checks all lengths and offsets here,
once, and then runs in C without the GIL. tests/engine/test_native.py compares them with slow twins in reference.py.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
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
    void ijfs_hints(const uint8_t *prints, size_t count, uint8_t *hints)
    size_t ijfs_mark_same(const uint8_t *prints, const uint8_t *theirs, size_t count, uint8_t *kinds)
    size_t ijfs_changed_lines(const uint8_t *a, const uint8_t *b, size_t n)

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


def hints_of(const uint8_t[::1] prints):
    """The hints of n pages, two bytes each, from their fingerprints (16 n bytes): as `fold_prints` gives them."""
    cdef size_t count = prints.shape[0] // 16
    if <size_t>prints.shape[0] != 16 * count:
        raise ValueError(f"{prints.shape[0]} bytes are no whole number of fingerprints")
    hints = bytearray(2 * count)
    cdef uint8_t[::1] hints_at = hints
    if count:
        with nogil:
            ijfs_hints(&prints[0], count, &hints_at[0])
    return bytes(hints)


def mark_same_prints(const uint8_t[::1] prints, const uint8_t[::1] theirs, uint8_t[::1] kinds):
    """Class as SAME the FRESH pages of `kinds` whose fingerprint in `prints` and `theirs` (16 bytes a page) is one.

    Returns how many pages, of whatever kind, have different ones."""
    cdef size_t count = kinds.shape[0], different = 0
    if not (<size_t>prints.shape[0] == <size_t>theirs.shape[0] == 16 * count):
        raise ValueError(f"{prints.shape[0]} and {theirs.shape[0]} bytes of fingerprints for {count} pages")
    if count:
        with nogil:
            different = ijfs_mark_same(&prints[0], &theirs[0], count, &kinds[0])
    return different


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


def changed_lines(const uint8_t[::1] a, const uint8_t[::1] b, uint8_t[::1] changed):
    """changed[i] = how many of the 64 cache lines of page i differ between a and b, which hold len(changed) pages."""
    cdef size_t count = changed.shape[0], i
    if not (<size_t>a.shape[0] == <size_t>b.shape[0] == count * IJFS_PAGE):
        raise ValueError(f"changed_lines: {a.shape[0]} and {b.shape[0]} bytes for {count} pages")
    with nogil:
        for i in range(count):
            changed[i] = ijfs_changed_lines(&a[i * IJFS_PAGE], &b[i * IJFS_PAGE], IJFS_PAGE)
