/* Loaded into `criu restore` (LD_PRELOAD, by command.py) where a program had record locks (fcntl): it has them again.

   Such a lock goes when its process closes any descriptor of the file. CRIU sets the locks, then maps files by descriptors
   of its own, and closes those: a lock on a file that its process also maps is lost. SQLite's log has such locks
   (`-shm`), and LMDB.

   When CRIU lets the first thread go (PTRACE_DETACH), all of them stand at their first instruction. Then each lock is set
   once more, by its process itself: a system call is put before that instruction, and taken away again. What it is to
   set, and what came of it, is in the file that the variable IJFS_RECORD_LOCKS names (relocking.py).

   CRIU may have a C library of its own, so nothing is linked but what it has loaded itself. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tracing.h"

#define CODE_SEGMENT_64 0x33
#define SYSCALL_INSTRUCTION 0x050f
#define PAGE 4096ul
#define MOST_PROCESSES (1u << 15)
#define WORDS (sizeof(struct flock) / sizeof(long))
#define NOT_DONE ESRCH

/* One lock, as relocking.py writes it; `result`: an error number, 0 where it is set. */
typedef struct {
    long process, descriptor, type, start, length, result;
} Lock;

/* Processes that CRIU traces: their numbers here and inside. */
static struct {
    int here;
    long inside;
} processes[MOST_PROCESSES];
static unsigned count;
static bool done;

/* The last number of the line NSpid: what the process is called in its own namespace. */
static long number_inside(const char *status) {
    for (const char *at = status; *at; at++) {
        static const char name[] = "\nNSpid:";
        size_t length = 0;
        while (name[length] && at[length] == name[length])
            length++;
        if (name[length])
            continue;
        long number = 0;
        for (at += length; *at && *at != '\n'; at++)
            number = *at < '0' || *at > '9' ? 0 : number * 10 + *at - '0';
        return number;
    }
    return 0;
}

/* CRIU has begun to trace a thread: processes are known by their first. */
static void note(int thread) {
    char text[STATUS_BYTES];
    if (count == MOST_PROCESSES || !read_status(thread, text) || number_of(text, "Tgid:", 10) != (unsigned long)thread)
        return;
    processes[count].here = thread;
    processes[count++].inside = number_inside(text);
}

static int here(long inside) {
    for (unsigned at = count; at > 0; at--)
        if (processes[at - 1].inside == inside)
            return processes[at - 1].here;
    return 0;
}

/* -- a system call of a process that stands still */

/* Let it run to the begin or the end of its call. */
static bool step(int process) {
    int status = 0;
    if (trace(PTRACE_SYSCALL, process, 0, NULL) != 0)
        return false;
    while (call(SYS_wait4, process, (long)&status, __WALL, 0) == -EINTR)
        ;
    return WIFSTOPPED(status) && (WSTOPSIG(status) & 0x7f) == SIGTRAP;
}

static bool swap_words(int process, unsigned long at, long *words, size_t length) {
    for (size_t word = 0; word < length; word++) {
        long was = 0;
        if (trace(PTRACE_PEEKDATA, process, at + word * sizeof was, &was) != 0 ||
            trace(PTRACE_POKEDATA, process, at + word * sizeof was, (void *)words[word]) != 0)
            return false;
        words[word] = was;
    }
    return true;
}

/* fcntl(descriptor, F_SETLK, lock), whose lock is in the process's memory; an error number. */
static long lock_inside(int process, const Registers *was, int descriptor, unsigned long lock) {
    long word = 0;
    if (trace(PTRACE_PEEKTEXT, process, was->rip, &word) != 0)
        return NOT_DONE;
    long code = (word & ~0xffffL) | SYSCALL_INSTRUCTION;
    if (code != word && trace(PTRACE_POKETEXT, process, was->rip, (void *)code) != 0)
        return NOT_DONE;
    Registers registers = *was;
    registers.rax = SYS_fcntl;
    registers.orig_rax = -1;
    registers.rdi = descriptor;
    registers.rsi = F_SETLK;
    registers.rdx = lock;
    set_registers(process, &registers);
    bool ran = step(process) && step(process) && get_registers(process, &registers);
    if (code != word)
        trace(PTRACE_POKETEXT, process, was->rip, (void *)word);
    return ran ? -(long)registers.rax : NOT_DONE;
}

static long set_again(int process, const Lock *wanted) {
    Registers was;
    if (!get_registers(process, &was) || was.cs != CODE_SEGMENT_64)
        return NOT_DONE;
    union {
        struct flock lock;
        long words[WORDS];
    } place = {.words = {0}};
    place.lock.l_type = (short)wanted->type;
    place.lock.l_whence = SEEK_SET;
    place.lock.l_start = wanted->start;
    place.lock.l_len = wanted->length;
    /* In the page of the code: that of the stack may be one that the pager has, and cannot be had by ptrace. */
    unsigned long page = was.rip & ~(PAGE - 1);
    unsigned long at = was.rip - page < PAGE / 2 ? page + PAGE - sizeof place : page;
    unsigned long all = ~0ul, mask = 0;
    if (trace(PTRACE_GETSIGMASK, process, sizeof mask, &mask) != 0 ||
        trace(PTRACE_SETSIGMASK, process, sizeof all, &all) != 0)
        return NOT_DONE;
    long result = NOT_DONE;
    if (swap_words(process, at, place.words, WORDS)) {
        result = lock_inside(process, &was, (int)wanted->descriptor, at);
        swap_words(process, at, place.words, WORDS);
        set_registers(process, &was);
    }
    trace(PTRACE_SETSIGMASK, process, sizeof mask, &mask);
    return result;
}

static void set_all(void) {
    const char *path = getenv("IJFS_RECORD_LOCKS");
    long file = path ? call(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC, 0) : -1;
    if (file < 0)
        return;
    Lock lock;
    for (long at = 0; call(SYS_pread64, file, (long)&lock, sizeof lock, at) == sizeof lock; at += sizeof lock) {
        int process = here(lock.process);
        lock.result = process ? set_again(process, &lock) : NOT_DONE;
        call(SYS_pwrite64, file, (long)&lock, sizeof lock, at);
    }
    call(SYS_close, file, 0, 0, 0);
}

/* -- in the C library's place */

long ptrace(int request, int thread, void *address, void *data) {
    long word;
    bool peeks = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSR;
    if (request == PTRACE_DETACH && !done) {
        done = true;
        set_all();
    }
    long result = trace(request, thread, (long)address, peeks ? &word : data);
    if (result < 0) {
        *__errno_location() = (int)-result;
        return -1;
    }
    if (request == PTRACE_SEIZE)
        note(thread);
    *__errno_location() = peeks ? 0 : *__errno_location();
    return peeks ? word : result;
}
