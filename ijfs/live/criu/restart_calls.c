/* Loaded into `criu dump` (LD_PRELOAD, by command.py): no system call of the program sees that it was saved, and no
   lease that it has is broken.

   CRIU stops every thread by ptrace. One that waited in a system call has an error number of the kernel in its register
   then. Some numbers tell CRIU to set the thread back to before the call, in the image and in the running program. Two
   do not, and the call would end with EINTR:

   - ERESTART_RESTARTBLOCK: poll, nanosleep, futex and others with a relative time-out. The kernel has the rest of the
     time, but not after the parasite of CRIU has run in the thread.
   - EINTR from calls that the kernel never restarts: epoll_wait, semtimedop, sockets with a time-out and others.

   So CRIU's question for the registers (PTRACE_GETREGSET) is answered with ERESTARTNOHAND, which it knows how to treat.
   When it lets a thread go (PTRACE_DETACH), the thread gets its number back: the kernel begins the call again, or
   ends it with EINTR, where a signal with a handler came meanwhile, as without a save. (Set back to before `pause`, it
   would wait for a second signal.) The time-out of a call begins anew.

   In the image there is no such number. A call of a thread that has a signal to handle ends with EINTR there, all other
   calls begin again. A call whose own number is lost, because it was continued once before (restart_syscall), ends with
   EINTR everywhere; CRIU warns of it, and the save says so.

   CRIU opens each file that the program has open once more, to read its build id. That breaks a write lease (F_SETLEASE):
   the holder gets SIGIO, which may end it, and CRIU waits for the holder, which stands still, for 45 s. Such a file CRIU
   gets by a duplicate of the program's own descriptor, which it has; it only maps it, so the position stays.

   And a timer that notifies a thread (SIGEV_THREAD_ID, as glibc's SIGEV_THREAD does) keeps its program from being saved no
   more. CRIU looks the thread up before it knows what it is called inside, and refuses the save, or writes down what lies
   in its memory. So in what it reads of /proc/PID/timers such a thread is number 0, for which it writes none; who it was
   the save has seen itself, and posix_timers.py puts it in before a restore.

   CRIU may have a C library of its own, so nothing is linked but what it has loaded itself. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/elf.h>
#include <linux/memfd.h>
#include <linux/ptrace.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracing.h"

#define ERESTARTSYS 512 /* linux/errno.h of the kernel; user space never sees them */
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
#define SYSCALL_BYTES 2 /* of the instruction `syscall` */
#define CODE_SEGMENT_64 0x33
#define SLOTS (1u << 16) /* threads that can be remembered; 1 MiB of address space, touched where it is used */

/* Threads whose calls were interrupted: where they were after it, and what the kernel restarts it by. */
static struct {
    int thread; /* 0: free, -1: freed */
    unsigned long ip;
    long number;
} slots[SLOTS];

/* -- signals */

static bool has_queued(int thread, unsigned flags) {
    char info[128]; /* siginfo_t */
    struct ptrace_peeksiginfo_args first = {0, flags, 1};
    return trace(PTRACE_PEEKSIGINFO, thread, (long)&first, info) != 0;
}

/* Whether a signal waits for the thread that a handler is going to get. One that was sent to the process is its first
   thread's, as it is by the kernel where that one does not block it. */
static bool has_signal(int thread) {
    if (!has_queued(thread, 0) && !has_queued(thread, PTRACE_PEEKSIGINFO_SHARED))
        return false;
    char text[STATUS_BYTES];
    if (!read_status(thread, text))
        return true;
    unsigned long pending = number_of(text, "SigPnd:", 16);
    if (number_of(text, "Tgid:", 10) == (unsigned long)thread)
        pending |= number_of(text, "ShdPnd:", 16);
    return pending & ~number_of(text, "SigBlk:", 16) & number_of(text, "SigCgt:", 16);
}

/* -- calls */

/* Calls that end with EINTR when their thread is stopped, by the kernel's own hand (signal(7)). Each has done nothing
   by then and may be begun again. */
static bool ends_when_stopped(unsigned long number) {
    switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_rt_sigtimedwait:
    case SYS_io_getevents:
    case SYS_read: /* of an inotify; of a socket with a time-out, as all below */
    case SYS_readv:
    case SYS_write:
    case SYS_writev:
    case SYS_connect:
    case SYS_accept:
    case SYS_accept4:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
        return true;
    default:
        return false;
    }
}

/* The error number by which the kernel restarts the call that these registers are in, negative; 0 where it is none that
   was interrupted by the save. */
static long restarting_number(const Registers *registers) {
    long result = (long)registers->rax;
    if (registers->cs != CODE_SEGMENT_64 || (long)registers->orig_rax < 0)
        return 0;
    switch (result) {
    case -ERESTARTSYS:
    case -ERESTARTNOINTR:
    case -ERESTARTNOHAND:
        return result;
    case -ERESTART_RESTARTBLOCK:
        return registers->orig_rax != SYS_restart_syscall ? -ERESTARTNOHAND : 0;
    case -EINTR:
        return ends_when_stopped(registers->orig_rax) ? -ERESTARTNOHAND : 0;
    default:
        return 0;
    }
}

static void remember(int thread, unsigned long ip, long number) {
    for (unsigned step = 0, at = (unsigned)thread % SLOTS; step < SLOTS; step++, at = (at + 1) % SLOTS) {
        if (slots[at].thread == thread)
            return;
        if (slots[at].thread <= 0) {
            slots[at].thread = thread;
            slots[at].ip = ip;
            slots[at].number = number;
            return;
        }
    }
}

/* Whether a thread is remembered, and as what; it is forgotten. */
static bool take(int thread, unsigned long *ip, long *number) {
    unsigned at = (unsigned)thread % SLOTS;
    for (unsigned step = 0; step < SLOTS && slots[at].thread; step++, at = (at + 1) % SLOTS)
        if (slots[at].thread == thread) {
            slots[at].thread = -1;
            *ip = slots[at].ip;
            *number = slots[at].number;
            return true;
        }
    return false;
}

/* CRIU has read a thread's registers. */
static void have_it_restarted(int thread, const struct iovec *answer) {
    Registers *registers = answer->iov_base;
    long number = answer->iov_len == sizeof *registers ? restarting_number(registers) : 0;
    if (!number)
        return;
    registers->rax = number == -ERESTARTNOHAND && has_signal(thread) ? -EINTR : number;
    remember(thread, registers->rip, number);
}

/* CRIU lets a thread go. One that it gave up before it read the registers may have been interrupted, too. */
static void let_kernel_restart(int thread) {
    Registers registers;
    unsigned long ip = 0;
    long number = 0;
    bool known = take(thread, &ip, &number);
    if (!get_registers(thread, &registers))
        return;
    if (known && registers.rip == ip - SYSCALL_BYTES && registers.rax == registers.orig_rax)
        registers.rip = ip;
    else if ((long)registers.rax != -EINTR)
        return;
    else if (!known || registers.rip != ip)
        number = restarting_number(&registers);
    if (number) {
        registers.rax = number;
        set_registers(thread, &registers);
    }
}

/* -- leases */

/* N of the path "fd/N", which CRIU opens in /proc/self; -1 where it is another one. */
static int descriptor_in(const char *path) {
    int number = 0;
    if (path[0] != 'f' || path[1] != 'd' || path[2] != '/' || !path[3])
        return -1;
    for (const char *at = path + 3; *at; at++) {
        if (*at < '0' || *at > '9' || number > 1 << 24)
            return -1;
        number = number * 10 + *at - '0';
    }
    return number;
}

static bool is_same_file(int directory, const char *path, int descriptor) {
    struct stat one, other;
    return call(SYS_newfstatat, directory, (long)path, (long)&one, 0) == 0 &&
           call(SYS_newfstatat, descriptor, (long)"", (long)&other, AT_EMPTY_PATH) == 0 &&
           one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

/* A duplicate of the descriptor that CRIU is about to open anew, where that would break its holder's write lease; -1
   where it would not. */
static int without_breaking(int directory, const char *path, int flags) {
    int descriptor = (flags & (O_ACCMODE | O_PATH)) == O_RDONLY ? descriptor_in(path) : -1;
    if (descriptor < 0 || call(SYS_fcntl, descriptor, F_GETLEASE, 0, 0) != F_WRLCK)
        return -1;
    return is_same_file(directory, path, descriptor) ? (int)call(SYS_fcntl, descriptor, F_DUPFD_CLOEXEC, 3, 0) : -1;
}

/* -- timers */

/* A copy of /proc/PID/timers in which every notified thread is number 0, read from its start; the file itself where that
   cannot be made. */
static long without_threads(long file) {
    static const char mark[] = "tid.";
    char text[4096];
    unsigned matched = 0;
    long length, copy = call(SYS_memfd_create, (long)"timers", MFD_CLOEXEC, 0, 0);
    if (copy < 0)
        return file;
    while ((length = call(SYS_read, file, (long)text, sizeof text, 0)) > 0) {
        for (long at = 0; at < length; at++) {
            if (matched == sizeof mark - 1) {
                if (text[at] >= '0' && text[at] <= '9') {
                    text[at] = '0';
                    continue;
                }
                matched = 0;
            }
            matched = text[at] == mark[matched] ? matched + 1 : text[at] == mark[0];
        }
        call(SYS_write, copy, (long)text, length, 0);
    }
    call(SYS_close, file, 0, 0, 0);
    call(SYS_lseek, copy, 0, SEEK_SET, 0);
    return copy;
}

static bool is_timers(const char *path) {
    static const char name[] = "timers";
    for (size_t at = 0; at < sizeof name; at++)
        if (path[at] != name[at])
            return false;
    return true;
}

/* -- in the C library's place */

int openat64(int directory, const char *path, int flags, ...) {
    long mode = 0;
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    long result = without_breaking(directory, path, flags);
    if (result < 0)
        result = call(SYS_openat, directory, (long)path, flags, mode);
    if (result >= 0 && is_timers(path))
        result = without_threads(result);
    if (result < 0) {
        *__errno_location() = (int)-result;
        return -1;
    }
    return (int)result;
}

long ptrace(int request, int thread, void *address, void *data) {
    long word;
    bool peeks = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSR;
    if (request == PTRACE_DETACH)
        let_kernel_restart(thread);
    long result = trace(request, thread, (long)address, peeks ? &word : data);
    if (result < 0) {
        *__errno_location() = (int)-result;
        return -1;
    }
    if (peeks) {
        *__errno_location() = 0;
        return word;
    }
    if (request == PTRACE_GETREGSET && (long)address == NT_PRSTATUS)
        have_it_restarted(thread, data);
    return result;
}
