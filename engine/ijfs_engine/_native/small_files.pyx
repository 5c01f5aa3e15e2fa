"""Many new files in one directory, in one call. Called by read/export.py where nobody sees them before they are whole.

Names, sizes and numbers are checked here, once; the files are made in C without the GIL. A file takes five system calls
where its owner, group and mode come out right by themselves, and seven else; one more where it is to have a certain inode.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc

import os

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct timespec "struct timespec":
        int64_t tv_sec
        long tv_nsec
    ctypedef struct stat_t "struct stat":
        uint32_t st_mode
        uint32_t st_uid
        uint32_t st_gid
    int fstat(int fd, stat_t *status)
    int fchmod(int fd, uint32_t mode)
    int futimens(int fd, const timespec *times)

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_WRONLY
        O_CREAT
        O_EXCL
        O_NOFOLLOW
        O_CLOEXEC
    int openat(int directory, const char *name, int flags, uint32_t mode)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t size)
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset)
    int fchown(int fd, uint32_t uid, uint32_t gid)
    int close(int fd)

cdef enum:
    RIGHTS = 0o777
    MODE = 0o7777
    SECOND = 1000000000

cdef struct File:
    const char *name
    Py_buffer data
    uint32_t mode, uid, gid
    int64_t inode
    timespec times[2]


def write_files(int directory, files, bint owners, int goal=-1):
    """Make files that are not there: (name, bytes, mode, uid, gid, mtime in ns, inode number) each, in order. `owners`:
    they get their owner and group. `goal`: a file in which the filesystem is told the next inode's number. OSError with the
    name of the first that cannot be made whole; it is left as far as it came."""
    cdef size_t n = len(files), held = 0, at = 0
    cdef int problem = 0
    cdef File *those = <File *>malloc((n + 1) * sizeof(File))
    if those == NULL:
        raise MemoryError
    try:
        for file in files:
            take(&those[held], file)
            held += 1
        with nogil:
            while at < held:
                problem = make(directory, &those[at], owners, goal)
                if problem:
                    break
                at += 1
        if problem:
            raise OSError(problem, os.strerror(problem), <bytes>those[at].name)
    finally:
        for at in range(held):
            PyBuffer_Release(&those[at].data)
        free(those)


cdef int take(File *to, tuple file) except -1:
    """One row; the tuple of the caller keeps its name alive."""
    cdef int64_t seconds
    cdef bytes name = file[0]
    if b"\0" in name or b"/" in name:
        raise ValueError(f"{name!r} cannot name a file")
    to.name = name
    to.mode, to.uid, to.gid = file[2], file[3], file[4]
    seconds, nanoseconds = divmod(file[5], SECOND)
    to.inode = file[6]
    for i in range(2):
        to.times[i].tv_sec, to.times[i].tv_nsec = seconds, nanoseconds
    PyObject_GetBuffer(file[1], &to.data, PyBUF_SIMPLE)
    return 0


cdef int make(int directory, const File *file, bint owners, int goal) noexcept nogil:
    """One file; errno, or 0."""
    cdef int fd, problem = choose(goal, file.inode) if goal >= 0 else 0
    if problem:
        return problem
    fd = openat(directory, file.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file.mode & RIGHTS)
    if fd < 0:
        return errno
    problem = fill(fd, file) or own(fd, file, owners)
    if not problem and futimens(fd, file.times) != 0:
        problem = errno
    close(fd)
    return problem


cdef int choose(int goal, int64_t inode) noexcept nogil:
    cdef char text[24]
    cdef int length = snprintf(text, sizeof(text), "%lld", <long long>inode)
    return 0 if pwrite(goal, text, length, 0) == length else errno


cdef int fill(int fd, const File *file) noexcept nogil:
    cdef ssize_t done = 0, got
    while done < file.data.len:
        got = write(fd, <const char *>file.data.buf + done, file.data.len - done)
        if got < 0 and errno != EINTR:
            return errno
        if got > 0:
            done += got
    return 0


cdef int own(int fd, const File *file, bint owners) noexcept nogil:
    """Owner, group and mode as they are to be, each where it is not so already; a change of owner clears bits of the mode."""
    cdef stat_t status
    if fstat(fd, &status) != 0:
        return errno
    if owners and (status.st_uid != file.uid or status.st_gid != file.gid):
        if fchown(fd, file.uid, file.gid) != 0:
            return errno
    if status.st_mode & MODE != file.mode and fchmod(fd, file.mode) != 0:
        return errno
    return 0
