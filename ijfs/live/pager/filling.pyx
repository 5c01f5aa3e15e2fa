"""Filling the missing pages of one address space, from several threads at once and without the interpreter's lock.

`Filler` is `space.Space`'s: the ioctls of a copy, the state bytes (`plan`) that say what is missing, and the lock that
keeps copies and mapping events apart. A single copying thread in Python reached 2 GB/s of a 16-core machine that takes
7 GB/s from four threads, and half of its time was the interpreter's.

The kernel refuses copies (EAGAIN) from the moment a mapping is about to change until the event that tells of it is
*read*. So whoever reads events must have settled them before the next copy looks at the plan: copies share the lock,
reading and settling events takes it alone. A copy looks up after each STEP whether somebody waits to do so.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EEXIST, ENOENT, ENOMEM, ENOSPC, ESRCH, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memset

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    ctypedef struct pthread_rwlockattr_t:
        pass
    enum:
        PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP
    int pthread_rwlockattr_init(pthread_rwlockattr_t *)
    int pthread_rwlockattr_destroy(pthread_rwlockattr_t *)
    int pthread_rwlockattr_setkind_np(pthread_rwlockattr_t *, int)
    int pthread_rwlock_init(pthread_rwlock_t *, const pthread_rwlockattr_t *)
    int pthread_rwlock_destroy(pthread_rwlock_t *)
    int pthread_rwlock_rdlock(pthread_rwlock_t *)
    int pthread_rwlock_wrlock(pthread_rwlock_t *)
    int pthread_rwlock_unlock(pthread_rwlock_t *)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef extern from * nogil:
    """
    static inline int ijfs_load(const int *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void ijfs_add(int *at, int what) { __atomic_add_fetch(at, what, __ATOMIC_ACQ_REL); }
    """
    int ijfs_load(const int *at)
    void ijfs_add(int *at, int what)

# As in uffd.py and plan.py, which say what each means.
cdef enum:
    PAGE = 4096
    MISSING = 0
    IN = 1
    ZERO = 2
    POISONED = 3
    DONE = 0
    CHANGING = 2
    NOT_MAPPED = 3
    GONE = 4
    NO_MEMORY = 5
    INTERRUPTED = 6
    # 256 KiB take 0.1 ms: nothing against a system call, and as long as an event waits at most for a copy.
    STEP = 64
cdef unsigned long UFFDIO_COPY = 0xC028AA03, UFFDIO_POISON = 0xC020AA08, UFFDIO_WAKE = 0x8010AA02


cdef class Filler:
    """The missing pages of one address space. `fill` and `zero` want the lock shared; whoever changes the plan, alone."""

    cdef int fd
    cdef int waiting        # threads that want the lock alone
    cdef uint8_t *states
    cdef size_t pages
    cdef Py_buffer view
    cdef bint open
    cdef pthread_rwlock_t lock

    def __cinit__(self, int fd, states not None):
        cdef pthread_rwlockattr_t kind
        PyObject_GetBuffer(states, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.fd, self.states, self.pages, self.open = fd, <uint8_t *>self.view.buf, self.view.len, True
        pthread_rwlockattr_init(&kind)
        pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP)
        pthread_rwlock_init(&self.lock, &kind)
        pthread_rwlockattr_destroy(&kind)

    def __dealloc__(self):
        self.close()
        pthread_rwlock_destroy(&self.lock)

    def close(self):
        """Let go of the states; with the lock held alone, or with no other thread left. What is filled then is GONE."""
        if self.open:
            self.open = False
            PyBuffer_Release(&self.view)

    def share(self):
        """Take the lock with other copies."""
        with nogil:
            pthread_rwlock_rdlock(&self.lock)

    def seize(self):
        """Take the lock alone: copies stop after their step."""
        with nogil:
            ijfs_add(&self.waiting, 1)
            pthread_rwlock_wrlock(&self.lock)
            ijfs_add(&self.waiting, -1)

    def release(self):
        """Give the lock back, however it was taken."""
        pthread_rwlock_unlock(&self.lock)

    def any_missing(self):
        """Whether a page is missing still."""
        return self.open and memchr(self.states, MISSING, self.pages) != NULL

    def counts(self):
        """How many pages there are in each state, by its number."""
        cdef size_t found[256]
        cdef size_t i
        memset(found, 0, sizeof(found))
        if self.open:
            with nogil:
                for i in range(self.pages):
                    found[self.states[i]] += 1
        return found[MISSING], found[IN], found[ZERO], found[POISONED]

    def zero(self, size_t first, size_t count):
        """These pages hold only zeros: those that are missing are so no more."""
        cdef size_t i
        if self.open and count <= self.pages and first <= self.pages - count:
            for i in range(first, first + count):
                if self.states[i] == MISSING:
                    self.states[i] = ZERO

    def fill(self, list targets not None, bint settled):
        """Copy what is missing: for each (vaddr, first, count, source) `count` pages from `first` on, which belong at
        `vaddr`, from the address `source`, or poisoned where that is 0. Waiters are woken.

        All in one stretch without the interpreter's lock: a task in the libraries of a large program has hundreds of
        targets. Returns the `uffd.RangeOutcome` that ended it, or else NOT_MAPPED if that was one of them, or DONE. NOT_MAPPED
        only while the mappings are not `settled`: a page that belongs nowhere is otherwise given up. OSError, MemoryError.
        """
        cdef size_t i, number = len(targets)
        cdef int outcome = DONE, worst = DONE
        cdef uint64_t *words
        if not self.open:
            return GONE
        words = <uint64_t *>malloc(number * 32 + 1)
        if words == NULL:
            raise MemoryError
        try:
            for i in range(number):
                words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = targets[i]
                if words[4 * i + 2] > self.pages or words[4 * i + 1] > self.pages - words[4 * i + 2]:
                    raise ValueError(f"there are no {words[4 * i + 2]} pages at {words[4 * i + 1]}")
            with nogil:
                for i in range(number):
                    outcome = self.fill_all(
                        words[4 * i], self.states + words[4 * i + 1], words[4 * i + 2], words[4 * i + 3], settled
                    )
                    if outcome == NOT_MAPPED:
                        worst = NOT_MAPPED
                    elif outcome != DONE:
                        worst = outcome
                        break
        finally:
            free(words)
        if worst < 0:
            raise OSError(-worst, "filling pages through a userfaultfd")
        return worst

    cdef int fill_all(self, uint64_t vaddr, uint8_t *states, size_t count, uint64_t source, bint settled) noexcept nogil:
        cdef size_t at = 0, end
        cdef int outcome
        while True:
            while at < count and states[at] != MISSING:
                at += 1
            if at == count:
                return DONE
            end = at + 1
            while end < count and end - at < STEP and states[end] == MISSING:
                end += 1
            if ijfs_load(&self.waiting):
                return INTERRUPTED
            outcome = self.fill_step(vaddr + at * PAGE, states + at, end - at, source + at * PAGE if source else 0, settled)
            if outcome != DONE:
                return outcome

    cdef int fill_step(self, uint64_t vaddr, uint8_t *states, size_t count, uint64_t source, bint settled) noexcept nogil:
        """Bring on at least the first of these missing pages."""
        cdef int64_t words[5]
        cdef int64_t handled
        while True:
            words[0], words[4] = vaddr, 0
            if source:
                words[1], words[2], words[3] = source, count * PAGE, 0
            else:
                words[1], words[2], words[3] = count * PAGE, 0, 0
            if ioctl(self.fd, UFFDIO_COPY if source else UFFDIO_POISON, words) == 0:
                handled = count * PAGE
            else:
                handled = words[4] if source else words[3]
            if handled > 0:
                memset(states, IN if source else POISONED, handled // PAGE)
                return DONE
            if errno == EEXIST:  # it is right as it is
                words[0], words[1] = vaddr, PAGE
                ioctl(self.fd, UFFDIO_WAKE, words)
                states[0] = IN
                return DONE
            if errno == ENOENT and not settled:
                return NOT_MAPPED
            if errno == ENOENT and count > 1:  # a boundary made by mprotect or munmap runs through it
                count //= 2
                continue
            if errno == ENOENT:
                states[0] = ZERO
                return DONE
            if errno == EAGAIN:
                return CHANGING
            if errno == ESRCH or errno == ENOSPC:
                return GONE
            return NO_MEMORY if errno == ENOMEM else -errno
