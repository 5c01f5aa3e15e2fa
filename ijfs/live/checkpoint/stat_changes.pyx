"""Which of many files are not what they were: one `fstatat` each, without the interpreter's lock.

`Expected` is `ahead.py`'s: what was seen while the program ran. `changed` is called while it stands still. 50,000 files
in 500 directories take 45 ms of processor, of several threads where there are processors for them; a walk in Python
took 600 ms.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    ctypedef struct stat_t "struct stat":
        unsigned long st_ino
        unsigned int st_mode
        int64_t st_size
        timespec st_mtim
        timespec st_ctim
    int fstat(int fd, stat_t *status)
    int fstatat(int directory, const char *name, stat_t *status, int flags)

cdef extern from "<fcntl.h>" nogil:
    enum:
        AT_SYMLINK_NOFOLLOW
        O_PATH
        O_DIRECTORY
        O_NOFOLLOW
        O_CLOEXEC
    int open(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

# So many lines are worth a thread: some 5 ms.
_LINES_OF_A_THREAD = 8192
# More do not get through the kernel's locks any faster.
_MOST_THREADS = 4

# A directory's own line in the table has no name.
cdef struct Line:
    int64_t inode, size, mode, mtime_ns, ctime_ns
    Py_ssize_t name
    uint8_t changed


cdef class Expected:
    """Directories and what is in them, as they were. Lines have numbers in the order in which they were added."""

    cdef Line *_lines
    cdef Py_ssize_t _count, _room
    cdef list _texts

    def __cinit__(self):
        self._lines = NULL
        self._count = self._room = 0
        self._texts = []

    def __dealloc__(self):
        PyMem_Free(self._lines)

    def __len__(self):
        return self._count

    def directory(self, path: bytes, key, trusted: bool) -> int:
        """A directory by its path; the names that follow are in it. What is not `trusted` counts as changed."""
        return self._add(path, key, trusted, True)

    def name(self, name: bytes, key, trusted: bool) -> int:
        """Something in the directory that was added last."""
        return self._add(name, key, trusted, False)

    def changed(self) -> list[int]:
        """The numbers of all lines that are not as they were, or not there."""
        cdef Py_ssize_t at
        cdef list texts = self._texts
        cdef const char **names = <const char **>PyMem_Malloc((self._count + 1) * sizeof(char *))
        if names == NULL:
            raise MemoryError
        try:
            for at in range(self._count):
                names[at] = <const char *>(<bytes>texts[at])
            self._look_all(<size_t>names)
        finally:
            PyMem_Free(names)
        return [at for at in range(self._count) if self._lines[at].changed]

    cdef Py_ssize_t _add(self, bytes text, object key, bint trusted, bint directory) except -1:
        cdef Line *grown
        cdef int64_t inode, size, mode, mtime_ns, ctime_ns
        inode, size, mode, mtime_ns, ctime_ns = key
        if self._count == self._room:
            self._room = max(1024, 2 * self._room)
            grown = <Line *>PyMem_Realloc(self._lines, self._room * sizeof(Line))
            if grown == NULL:
                raise MemoryError
            self._lines = grown
        cdef Line *line = &self._lines[self._count]
        line.inode, line.size, line.mode = inode, size, mode
        line.mtime_ns, line.ctime_ns = mtime_ns, ctime_ns
        line.name = 0 if directory else 1
        line.changed = 0 if trusted else 2
        self._texts.append(text)
        self._count += 1
        return self._count - 1

    def _look_all(self, names: int) -> None:
        parts = self._parts()
        if len(parts) == 1:
            self._look_at(names, *parts[0])
            return
        with ThreadPoolExecutor(len(parts)) as pool:
            for done in [pool.submit(self._look_at, names, *part) for part in parts]:
                done.result()

    def _parts(self) -> list[tuple[int, int]]:
        """The lines in parts that begin with a directory, one for each thread."""
        most = min(len(os.sched_getaffinity(0)), _MOST_THREADS, self._count // _LINES_OF_A_THREAD)
        cuts = [0]
        cdef Py_ssize_t at, last = 0
        for number in range(1, most):
            at = self._count * number // most
            while at < self._count and self._lines[at].name != 0:
                at += 1
            if last < at < self._count:
                cuts.append(at)
                last = at
        return list(zip(cuts, [*cuts[1:], self._count], strict=True))

    def _look_at(self, names: int, begin: int, end: int) -> None:
        cdef Py_ssize_t first = begin, last = end
        cdef size_t where = names
        with nogil:
            self._look(<const char **>where, first, last)

    cdef void _look(self, const char **names, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
        cdef Py_ssize_t at
        cdef int here = -1
        cdef stat_t status
        cdef Line *line
        for at in range(begin, end):
            line = &self._lines[at]
            if line.changed == 2:
                if line.name:
                    continue
            if line.name == 0:
                if here >= 0:
                    close(here)
                here = open(names[at], O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                if here < 0 or fstat(here, &status) != 0:
                    line.changed = 1
                    continue
            elif here < 0 or fstatat(here, names[at], &status, AT_SYMLINK_NOFOLLOW) != 0:
                line.changed = 1
                continue
            if line.changed != 2:
                line.changed = not _same(line, &status)
        if here >= 0:
            close(here)


cdef inline bint _same(Line *line, stat_t *status) noexcept nogil:
    return (
        line.inode == <int64_t>status.st_ino
        and line.mode == status.st_mode
        and line.size == status.st_size
        and line.mtime_ns == status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec
        and line.ctime_ns == status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec
    )
