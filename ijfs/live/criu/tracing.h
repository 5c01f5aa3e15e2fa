/* What the libraries that CRIU loads share: system calls without a C library, ptrace, /proc/PID/status. */

#ifndef IJFS_TRACING_H
#define IJFS_TRACING_H

#include <fcntl.h>
#include <linux/elf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

#define STATUS_BYTES 4096

typedef struct user_regs_struct Registers;

static inline long call(long number, long a, long b, long c, long d) {
    long result;
    register long fourth __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long trace(long request, int thread, long address, void *data) {
    return call(SYS_ptrace, request, thread, address, (long)data);
}

static inline bool get_registers(int thread, Registers *registers) {
    struct iovec whole = {registers, sizeof *registers};
    return trace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &whole) == 0 && whole.iov_len == sizeof *registers;
}

static inline void set_registers(int thread, Registers *registers) {
    struct iovec whole = {registers, sizeof *registers};
    trace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &whole);
}

static inline size_t put_text(char *to, const char *text) {
    size_t length = 0;
    for (; text[length]; length++)
        to[length] = text[length];
    return length;
}

static inline size_t put_number(char *to, int number) {
    char digits[12];
    size_t count = 0;
    do
        digits[count++] = '0' + number % 10;
    while (number /= 10);
    for (size_t at = 0; at < count; at++)
        to[at] = digits[count - 1 - at];
    return count;
}

/* The number behind a name in the text of /proc/PID/status; 0 where there is none. */
static inline unsigned long number_of(const char *text, const char *name, unsigned base) {
    for (const char *at = text; *at; at++) {
        size_t length = 0;
        while (name[length] && at[length] == name[length])
            length++;
        if (name[length])
            continue;
        unsigned long number = 0;
        for (at += length; *at == '\t'; at++)
            ;
        for (; *at && *at != '\n'; at++)
            number = number * base + (unsigned long)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
        return number;
    }
    return 0;
}

/* The text of /proc/PID/status of a thread; whether there is one. */
static inline bool read_status(int thread, char text[STATUS_BYTES]) {
    char path[40];
    size_t end = put_text(path, "/proc/");
    end += put_number(path + end, thread);
    end += put_text(path + end, "/status");
    path[end] = 0;
    long file = call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0)
        return false;
    long length = call(SYS_read, file, (long)text, STATUS_BYTES - 1, 0);
    call(SYS_close, file, 0, 0, 0);
    text[length < 0 ? 0 : length] = 0;
    return length >= 0;
}

#endif
