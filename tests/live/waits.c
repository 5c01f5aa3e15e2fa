/* Every kind of system call that waits for a time: `waits SECONDS` begins them all and prints how each ended, what it
   returned, and after how long. `waits SECONDS refused` has an io_uring open beside, which CRIU refuses to save;
   `waits SECONDS pausing` only waits for a signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int seconds;

static struct timespec span(void) { return (struct timespec){seconds, 0}; }

static int socket_with_timeout(void) {
    int ends[2];
    struct timeval limit = {seconds, 0};
    socketpair(AF_UNIX, SOCK_DGRAM, 0, ends);
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return ends[0];
}

static long wait_poll(void) { return poll(0, 0, seconds * 1000); }
static long wait_ppoll(void) { struct timespec t = span(); return ppoll(0, 0, &t, 0); }
static long wait_nanosleep(void) { struct timespec t = span(); return syscall(SYS_nanosleep, &t, 0); }
static long wait_relative(void) {
    struct timespec t = span();
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, 0);
}
static long wait_absolute(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += seconds;
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
}
static long wait_epoll(void) {
    struct epoll_event event;
    return epoll_wait(epoll_create1(0), &event, 1, seconds * 1000);
}
static long wait_select(void) { struct timeval t = {seconds, 0}; return select(0, 0, 0, 0, &t); }
static long wait_futex(void) {
    static int word;
    struct timespec t = span();
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0);
}
static long wait_semtimedop(void) {
    struct sembuf down = {0, -1, 0};
    struct timespec t = span();
    return semtimedop(semget(IPC_PRIVATE, 1, 0600), &down, 1, &t);
}
static long wait_recvmmsg(void) { struct mmsghdr m = {0}; return recvmmsg(socket_with_timeout(), &m, 1, 0, 0); }
static long wait_recv(void) { char c; return recv(socket_with_timeout(), &c, 1, 0); }
static long wait_sigtimedwait(void) {
    sigset_t set;
    struct timespec t = span();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return sigtimedwait(&set, 0, &t);
}
/* These have no time-out; they are only not to end. */
static long wait_msgrcv(void) {
    struct { long type; char text; } m;
    return msgrcv(msgget(IPC_PRIVATE, 0600), &m, 1, 0, 0);
}
static long wait_inotify(void) { char events[500]; return read(inotify_init(), events, sizeof events); }

static struct { const char *name; long (*wait)(void); } waits[] = {
    {"poll", wait_poll}, {"ppoll", wait_ppoll}, {"nanosleep", wait_nanosleep}, {"clock_nanosleep", wait_relative},
    {"clock_nanosleep-absolute", wait_absolute}, {"epoll_wait", wait_epoll}, {"select", wait_select},
    {"futex", wait_futex}, {"semtimedop", wait_semtimedop}, {"recvmmsg", wait_recvmmsg}, {"recv", wait_recv},
    {"sigtimedwait", wait_sigtimedwait}, {"msgrcv", wait_msgrcv}, {"inotify", wait_inotify}};

static void *run(void *which) {
    long at = (long)which;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    errno = 0;
    long result = waits[at].wait();
    int error = errno;
    clock_gettime(CLOCK_MONOTONIC, &after);
    double took = after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9;
    printf("%s %ld %d %.3f\n", waits[at].name, result, error, took);
    return 0;
}

static void usr2(int number) { (void)number; }

int main(int count, char **words) {
    static char ring[256];
    pthread_t thread;
    seconds = atoi(words[1]);
    setbuf(stdout, 0);
    const char *mode = count > 2 ? words[2] : "";
    if (!strcmp(mode, "refused"))
        syscall(SYS_io_uring_setup, 4, ring);
    struct sigaction handled = {.sa_handler = usr2, .sa_flags = SA_RESTART};
    sigaction(SIGUSR2, &handled, 0);
    for (long at = 0; strcmp(mode, "pausing") && at < (long)(sizeof waits / sizeof *waits); at++)
        pthread_create(&thread, 0, run, (void *)at);
    puts("waiting");
    for (;;) {
        /* SIGUSR2 ends either, in spite of SA_RESTART. */
        long result = strcmp(mode, "pausing") ? poll(0, 0, 600000) : pause();
        printf("main %ld %d 0\n", result, errno);
    }
}
