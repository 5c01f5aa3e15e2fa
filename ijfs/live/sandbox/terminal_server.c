/* The terminal of a program that was started with one (`ijfs run -it`): a program that runs inside the sandbox, as the
   parent of that program, and is saved, restored and forked with it.

       terminal ROWS COLUMNS PATH ARGV0 [ARGUMENT…]        with IJFS_TERMINAL=KEY in its environment

   It makes a pseudoterminal, runs PATH at it, and ends with its exit status. The pseudoterminal is then with a second
   child, the server: CRIU refuses a program that has /dev/tty open where it comes, in the order of the process tree,
   after another process that has the same terminal. The server leads a session of its own, or a restore would make it
   before the program. What the program writes goes to the log,
   which is this one's standard output: so `ijfs logs` has it, and it rides in each snapshot. Clients
   (ijfs/live/client/terminal.py) come over TCP at 127.0.0.1:PORT of the sandbox's network, because of all sockets those
   are the ones that CRIU saves without their peer. A client says KEY, then sends frames: a letter, two bytes of length,
   so many bytes. `d` is typed, `s` is the window's rows and columns, two bytes each (all numbers: big-endian). It gets
   four bytes, the length of what was on the screen before, then that, then what is written from now on.

   A client is sent the log, each from where it is: so a slow one misses nothing and holds nobody up. SIGTERM goes to
   the program, and SIGHUP after it where that is ignored, as shells do at a terminal. SIGINT goes to what runs in the
   foreground.

   Nothing is linked, so that it runs on every base, whatever its C library: setup.py makes it as a shared object with an
   entry, which the kernel runs as it is. */

#include <asm/errno.h>
#include <asm/signal.h>
#include <asm/termios.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/in.h>
#include <linux/poll.h>
#include <linux/signalfd.h>
#include <linux/wait.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PORT 4718 /* ijfs.live.model.paths.TERMINAL_PORT */
#define KEY_BYTES 32
#define MOST_CLIENTS 8
#define REPLAY (256 << 10) /* bytes of the log that a new client is shown: some screens */
#define LOG "/run/ijfs/program.log"
#define KEY_VARIABLE "IJFS_TERMINAL="
#define NOT_FOUND 127
#define NOT_RUN 126
#define OTHERS 4 /* descriptors that are waited for beside clients */
#define LAST_WORDS_MS 1000 /* how long a client may take to fetch what was written last */

#define AF_INET 2
#define SOCK_STREAM 1
#define SOCK_NONBLOCK 04000
#define SOCK_CLOEXEC 02000000
#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define SOL_TCP 6
#define TCP_NODELAY 1
#define MSG_NOSIGNAL 0x4000
#define SIG_BIT(number) (1ul << ((number) - 1))

/* ---- what a C library would bring ---- */

static long call(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL(name, a, b, c, d, e) call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* The compiler calls these by itself. */
__attribute__((visibility("hidden"))) void *memset(void *at, int byte, size_t length) {
    for (volatile char *p = at; length-- > 0;) *p++ = (char)byte;
    return at;
}
__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, size_t length) {
    const char *source = from;
    for (volatile char *p = to; length-- > 0;) *p++ = *source++;
    return to;
}

static size_t length_of(const char *text) {
    size_t length = 0;
    while (text[length] != 0) length++;
    return length;
}

static bool begins(const char *text, const char *with) {
    while (*with != 0) {
        if (*text++ != *with++) return false;
    }
    return true;
}

static int number_in(const char *text) {
    int number = 0;
    while (*text >= '0' && *text <= '9') number = number * 10 + (*text++ - '0');
    return number;
}

static void write_all(int fd, const char *data, size_t length) {
    while (length > 0) {
        long written = CALL(write, fd, data, length, 0, 0);
        if (written == -EINTR) continue;
        if (written <= 0) return;
        data += written;
        length -= (size_t)written;
    }
}

static void say(const char *text) { write_all(2, text, length_of(text)); }

static void leave(int status) {
    for (;;) CALL(exit_group, status, 0, 0, 0, 0);
}

/* ---- state ---- */

struct client {
    int fd; /* -1: free */
    bool known; /* it has said the key */
    uint64_t at; /* of the log: what it is sent next */
    uint32_t held; /* bytes in `in` */
    char in[4096];
};

static struct {
    int master, log, signals, listener;
    int alive; /* a pipe that is closed when the program has ended */
    int program;
    bool ended;
    bool open; /* the pseudoterminal: false when nobody has its other end any more */
    char key[KEY_BYTES];
    struct client clients[MOST_CLIENTS];
} terminal;

static uint64_t log_size(void) {
    long end = CALL(lseek, terminal.log, 0, 2, 0, 0);
    return end > 0 ? (uint64_t)end : 0;
}

/* ---- the program ---- */

/* A keeper ignores some signals, and who is started with them ignored leaves them so: Ctrl-C would do nothing. */
static void reset_signals(const unsigned long *mask) {
    struct { unsigned long handler, flags, restorer, mask; } by_default = {0, 0, 0, 0};
    for (int number = 1; number <= SIGSYS; number++) CALL(rt_sigaction, number, &by_default, NULL, sizeof *mask, 0);
    CALL(rt_sigprocmask, SIG_SETMASK, mask, NULL, sizeof *mask, 0);
}

static void run_program(int slave, char **argv, char **envp, unsigned long *mask) {
    CALL(setsid, 0, 0, 0, 0, 0);
    CALL(ioctl, slave, TIOCSCTTY, 0, 0, 0);
    for (int fd = 0; fd < 3; fd++) CALL(dup2, slave, fd, 0, 0, 0);
    if (slave > 2) CALL(close, slave, 0, 0, 0, 0);
    reset_signals(mask);
    long error = CALL(execve, argv[0], argv + 1, envp, 0, 0);
    say("ijfs: ");
    say(argv[0]);
    say(error == -ENOENT ? ": no such file\n" : ": it cannot be run\n");
    leave(error == -ENOENT ? NOT_FOUND : NOT_RUN);
}

static void set_size(unsigned rows, unsigned columns) {
    struct winsize size = {(unsigned short)rows, (unsigned short)columns, 0, 0};
    CALL(ioctl, terminal.master, TIOCSWINSZ, &size, 0, 0);
}

static int make_terminal(unsigned rows, unsigned columns) {
    int zero = 0;
    long master = CALL(open, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
    if (master < 0) return -1;
    terminal.master = (int)master;
    CALL(ioctl, master, TIOCSPTLCK, &zero, 0, 0);
    long slave = CALL(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY, 0, 0);
    struct termios settings;
    if (slave >= 0 && CALL(ioctl, slave, TCGETS, &settings, 0, 0) == 0) {
        settings.c_iflag |= IUTF8;
        CALL(ioctl, slave, TCSETS, &settings, 0, 0);
    }
    set_size(rows, columns);
    return (int)slave;
}

static bool ignores_sigterm(int pid) {
    char path[32] = "/proc/", text[4096];
    char digits[12];
    int count = 0, at = 6;
    for (int rest = pid; rest > 0; rest /= 10) digits[count++] = (char)('0' + rest % 10);
    while (count > 0) path[at++] = digits[--count];
    memcpy(path + at, "/status", 8);
    long fd = CALL(open, path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (fd < 0) return false;
    long length = CALL(read, fd, text, sizeof text - 1, 0, 0);
    CALL(close, fd, 0, 0, 0, 0);
    text[length > 0 ? length : 0] = 0;
    for (char *line = text; *line != 0; line++) {
        if (!begins(line, "\nSigIgn:\t")) continue;
        uint64_t mask = 0;
        for (line += 9; *line != 0 && *line != '\n'; line++)
            mask = mask * 16 + (uint64_t)(*line <= '9' ? *line - '0' : *line - 'a' + 10);
        return (mask & SIG_BIT(SIGTERM)) != 0;
    }
    return false;
}

static void hand_on(int number) {
    int group = 0;
    if (number == SIGINT && CALL(ioctl, terminal.master, TIOCGPGRP, &group, 0, 0) == 0 && group > 0) {
        CALL(kill, -group, number, 0, 0, 0);
        return;
    }
    CALL(kill, -terminal.program, number, 0, 0, 0);
    if (number == SIGTERM && ignores_sigterm(terminal.program)) {
        CALL(kill, -terminal.program, SIGHUP, 0, 0, 0);
        CALL(kill, -terminal.program, SIGCONT, 0, 0, 0);
    }
}

/* ---- clients ---- */

static void drop(struct client *client) {
    CALL(close, client->fd, 0, 0, 0, 0);
    client->fd = -1;
}

static void admit(void) {
    int one = 1;
    long fd = CALL(accept4, terminal.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    for (int i = 0; i < MOST_CLIENTS; i++) {
        struct client *client = &terminal.clients[i];
        if (client->fd >= 0) continue;
        CALL(setsockopt, fd, SOL_TCP, TCP_NODELAY, &one, sizeof one);
        client->fd = (int)fd;
        client->known = false;
        client->held = 0;
        return;
    }
    CALL(close, fd, 0, 0, 0, 0);
}

static void greet(struct client *client) {
    uint64_t end = log_size();
    uint32_t replay = end < REPLAY ? (uint32_t)end : REPLAY;
    unsigned char head[4] = {replay >> 24, replay >> 16, replay >> 8, replay};
    client->known = true;
    client->at = end - replay;
    write_all(client->fd, (char *)head, sizeof head);
}

/* What the program has not read yet stays with the client: it is tried again when there is room. */
static uint32_t typed(const char *data, uint32_t length) {
    long written = CALL(write, terminal.master, data, length, 0, 0);
    if (written >= 0) return (uint32_t)written;
    return written == -EAGAIN || written == -EINTR ? 0 : length;
}

/* How many of the bytes are done with; 0: the rest has to come first, or the program has to read. */
static uint32_t take(struct client *client, uint32_t from) {
    unsigned char *data = (unsigned char *)client->in + from;
    uint32_t left = client->held - from;
    if (!client->known) {
        if (left < KEY_BYTES) return 0;
        unsigned char differs = 0;
        for (int i = 0; i < KEY_BYTES; i++) differs |= data[i] ^ (unsigned char)terminal.key[i];
        if (differs != 0) drop(client);
        else greet(client);
        return KEY_BYTES;
    }
    if (left < 3) return 0;
    uint32_t length = (uint32_t)data[1] << 8 | data[2];
    if (length > sizeof client->in - 3) {
        drop(client);
        return left;
    }
    if (left < 3 + length) return 0;
    if (data[0] == 's' && length == 4) {
        set_size((unsigned)data[3] << 8 | data[4], (unsigned)data[5] << 8 | data[6]);
        return 3 + length;
    }
    if (data[0] != 'd' || length == 0) return 3 + length;
    uint32_t done = typed((char *)data + 3, length);
    if (done == 0 || done == length) return done == 0 ? 0 : 3 + length;
    data[done] = 'd'; /* a frame of what is left, over what was taken */
    data[done + 1] = (unsigned char)((length - done) >> 8);
    data[done + 2] = (unsigned char)(length - done);
    return done;
}

static void hear(struct client *client) {
    if (client->held < sizeof client->in) {
        long got = CALL(read, client->fd, client->in + client->held, sizeof client->in - client->held, 0, 0);
        if (got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR)) {
            drop(client);
            return;
        }
        if (got > 0) client->held += (uint32_t)got;
    }
    uint32_t from = 0, done;
    while (client->fd >= 0 && from < client->held && (done = take(client, from)) > 0) from += done;
    for (uint32_t i = from; i < client->held; i++) client->in[i - from] = client->in[i];
    client->held -= from;
}

static void tell(struct client *client) {
    char data[16384];
    long length = CALL(pread64, terminal.log, data, sizeof data, client->at, 0);
    if (length <= 0) return;
    long sent = CALL(sendto, client->fd, data, length, MSG_NOSIGNAL, 0);
    if (sent > 0) client->at += (uint64_t)sent;
    else if (sent != -EAGAIN && sent != -EINTR) drop(client);
}

/* ---- the loop ---- */

static void take_output(void) {
    char data[16384];
    long got = CALL(read, terminal.master, data, sizeof data, 0, 0);
    if (got > 0) write_all(1, data, (size_t)got);
    else if (got != -EAGAIN && got != -EINTR) terminal.open = false;
}

/* Whether a client has a whole frame that the program had no room for. */
static bool waits_for_room(const struct client *client) {
    if (!client->known || client->held < 3) return false;
    uint32_t length = (uint32_t)(unsigned char)client->in[1] << 8 | (unsigned char)client->in[2];
    return client->held >= 3 + length;
}

static void wait_for_anything(int limit_ms, bool hears) {
    struct pollfd polled[OTHERS + MOST_CLIENTS];
    uint64_t end = log_size();
    short typing = 0;
    for (int i = 0; i < MOST_CLIENTS; i++) {
        struct client *client = &terminal.clients[i];
        bool waits = client->fd >= 0 && waits_for_room(client);
        if (waits) typing = POLLOUT;
        short events = waits || !hears ? 0 : POLLIN;
        if (client->known && client->at < end) events |= POLLOUT;
        polled[OTHERS + i] = (struct pollfd){client->fd, events, 0};
    }
    polled[0] = (struct pollfd){terminal.open ? terminal.master : -1, (short)(POLLIN | typing), 0};
    polled[1] = (struct pollfd){hears ? terminal.signals : -1, POLLIN, 0};
    polled[2] = (struct pollfd){hears ? terminal.listener : -1, POLLIN, 0};
    polled[3] = (struct pollfd){hears ? terminal.alive : -1, POLLIN, 0};
    if (CALL(poll, polled, OTHERS + MOST_CLIENTS, limit_ms, 0, 0) <= 0) return;
    if ((polled[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0) take_output();
    for (int i = 0; i < MOST_CLIENTS; i++) {
        struct client *client = &terminal.clients[i];
        short events = polled[OTHERS + i].revents;
        if (client->fd < 0 || client->fd != polled[OTHERS + i].fd) continue;
        if ((events & POLLOUT) != 0) tell(client);
        bool room = (polled[0].revents & POLLOUT) != 0 && waits_for_room(client);
        if (client->fd >= 0 && (events & (POLLHUP | POLLERR)) != 0) drop(client);
        else if (client->fd >= 0 && hears && (room || (events & POLLIN) != 0)) hear(client);
    }
    if (polled[2].revents != 0) admit();
    if (polled[3].revents != 0) terminal.ended = true;
}

static void take_signals(void) {
    struct signalfd_siginfo info;
    while (CALL(read, terminal.signals, &info, sizeof info, 0, 0) == sizeof info) {
        hand_on((int)info.ssi_signo);
    }
}

/* What is still in the pseudoterminal goes to the log, and the log to the clients that fetch it. */
static void say_last_words(void) {
    while (terminal.open) {
        uint64_t before = log_size();
        take_output();
        if (log_size() == before) break;
    }
    for (int waited = 0; waited < LAST_WORDS_MS; waited += 10) {
        bool behind = false;
        for (int i = 0; i < MOST_CLIENTS; i++) {
            struct client *client = &terminal.clients[i];
            behind |= client->fd >= 0 && client->known && client->at < log_size();
        }
        if (!behind) return;
        wait_for_anything(10, false);
    }
}

static bool listen_for_clients(void) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = __builtin_bswap16(PORT)};
    address.sin_addr.s_addr = __builtin_bswap32(0x7f000001);
    long fd = CALL(socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
    if (fd < 0) return false;
    terminal.listener = (int)fd;
    CALL(setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return CALL(bind, fd, &address, sizeof address, 0, 0) == 0 && CALL(listen, fd, MOST_CLIENTS, 0, 0, 0) == 0;
}

/* The key leaves the environment: it is the clients', not the program's. */
static void take_key(char **envp) {
    char **to = envp;
    for (char **from = envp; *from != NULL; from++) {
        if (begins(*from, KEY_VARIABLE)) {
            const char *key = *from + sizeof KEY_VARIABLE - 1;
            if (length_of(key) == KEY_BYTES) memcpy(terminal.key, key, KEY_BYTES);
        } else {
            *to++ = *from;
        }
    }
    *to = NULL;
}

/* The server: until the program has ended, and its clients know what it wrote last. */
static void serve(void) {
    CALL(setsid, 0, 0, 0, 0, 0);
    terminal.open = true;
    while (!terminal.ended) {
        wait_for_anything(-1, true);
        take_signals();
    }
    say_last_words();
    leave(0);
}

/* Hand signals on to the server until the program has ended; its exit status, as a shell has it. */
static int wait_for_program(long server, unsigned long mask) {
    int status = 0;
    while (CALL(wait4, terminal.program, &status, WNOHANG, 0, 0) != terminal.program) {
        long number = CALL(rt_sigtimedwait, &mask, NULL, NULL, sizeof mask, 0);
        if (number > 0 && number != SIGCHLD) CALL(kill, server, number, 0, 0, 0);
    }
    return (status & 0x7f) != 0 ? 128 + (status & 0x7f) : (status >> 8) & 0xff;
}

static int run(long argc, char **argv) {
    char **envp = argv + argc + 1;
    int alive[2];
    if (argc < 5) return NOT_RUN;
    take_key(envp);
    for (int i = 0; i < MOST_CLIENTS; i++) terminal.clients[i].fd = -1;
    unsigned long mask = SIG_BIT(SIGTERM) | SIG_BIT(SIGHUP) | SIG_BIT(SIGINT) | SIG_BIT(SIGQUIT) | SIG_BIT(SIGUSR1) |
                         SIG_BIT(SIGUSR2);
    unsigned long before = 0, with_children = mask | SIG_BIT(SIGCHLD);
    CALL(rt_sigprocmask, SIG_BLOCK, &with_children, &before, sizeof mask, 0);
    terminal.signals = (int)CALL(signalfd4, -1, &mask, sizeof mask, O_NONBLOCK | O_CLOEXEC, 0);
    terminal.log = (int)CALL(open, LOG, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    int slave = make_terminal((unsigned)number_in(argv[1]), (unsigned)number_in(argv[2]));
    bool piped = CALL(pipe2, alive, O_CLOEXEC, 0, 0, 0) == 0;
    if (slave < 0 || terminal.log < 0 || terminal.signals < 0 || !piped || !listen_for_clients()) {
        say("ijfs: the sandbox has no terminal for its program\n");
        return NOT_RUN;
    }
    long program = CALL(fork, 0, 0, 0, 0, 0);
    if (program == 0) run_program(slave, argv + 3, envp, &before);
    CALL(close, slave, 0, 0, 0, 0);
    terminal.program = (int)program;
    terminal.alive = alive[0];
    long server = program < 0 ? program : CALL(fork, 0, 0, 0, 0, 0);
    if (server == 0) {
        CALL(close, alive[1], 0, 0, 0, 0);
        serve();
    }
    if (server < 0) return NOT_RUN;
    int held[] = {terminal.master, terminal.log, terminal.signals, terminal.listener, alive[0]};
    for (unsigned i = 0; i < sizeof held / sizeof *held; i++) CALL(close, held[i], 0, 0, 0, 0);
    int status = wait_for_program(server, with_children);
    CALL(close, alive[1], 0, 0, 0, 0);
    while (CALL(wait4, server, NULL, 0, 0, 0) == -EINTR) continue;
    return status;
}

__attribute__((used)) static void begin(long *stack) { leave(run(stack[0], (char **)(stack + 1))); }

__asm__(".globl ijfs_terminal_start\n"
        "ijfs_terminal_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call begin\n"
        "    hlt\n");
