/*
 * The first process of a virtual machine that boots nestbed's initramfs: finds the root file system, then does what the host asks.
 * On a disk that has an init of its own it is a service of that instead (service.h): `agent serve`; `agent install` makes it one.
 * Programs that it starts find it as /proc/$PPID/exe, and in it what no shell has (watch.h).
 *
 * It trusts the host and nothing in the guest depends on it but nestbed. It is linked statically and opens no library of the root.
 * The command line of the kernel says what the root is:
 *
 *     nestbed.root=virtiofs:TAG    read-only through virtiofs, under a tmpfs that takes the changes
 *     nestbed.root=disk:DEVICE     ext4 on a disk, whose init becomes the first process
 *
 * See frames.h for what is said. Every port has channels of its own; a channel is a program.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "frames.h"
#include "net.h"
#include "watch.h"

enum { PORTS = 2, MAIN = 0, CONTROL = 1, PENDING_NICS_MAX = 64, WORDS_MAX = 65536 };

static const char *const port_names[PORTS] = {"nestbed.main", "nestbed.control"};

struct words {
    char **list;
    size_t count;
    char *open; /* the word that is not ended yet */
    size_t open_bytes;
};

struct channel {
    struct channel *next;
    struct port *port;
    uint32_t id;
    struct words arguments, variables;
    char *directory, *user;
    uint16_t flags, rows, columns;
    pid_t pid; /* 0: not started, or reaped */
    int is_started, is_ended, wait_status;
    int in_fd, out_fd, err_fd; /* with a terminal in_fd and out_fd are its master */
    uint32_t credit;           /* octets of output the host takes */
    unsigned char *input;      /* CREDIT_BYTES that the program has not taken */
    size_t input_bytes;
    int is_input_ended;
};

struct port {
    int fd;
    unsigned char in[2 * (HEADER_BYTES + FRAME_BYTES_MAX)];
    size_t in_bytes;
    unsigned char *out;
    size_t out_bytes, out_size;
    struct channel *channels;
    int is_connected;
};

struct pending_nic {
    struct port *port;
    uint32_t channel;
    unsigned char *words;
    uint32_t length;
};

/* A program that is started again whenever it ends. */
struct kept {
    struct kept *next;
    struct channel program;
    pid_t pid;           /* 0: it is to be started at `due` */
    struct timespec due; /* of CLOCK_MONOTONIC */
};

static struct port ports[PORTS];
static struct kept *kept_programs;
static struct pending_nic pending[PENDING_NICS_MAX];
static size_t pending_count;
static int epoll_fd, signal_fd, uevent_fd, is_service;

static void say(const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0) {
        dprintf(fd, "nestbed: %.*s\r\n", length, text);
        close(fd);
    }
}

static _Noreturn void give_up(const char *step) {
    say("%s: %s", step, strerror(errno));
    if (is_service)
        exit(1);
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void *must(void *memory) {
    if (!memory)
        give_up("out of memory");
    return memory;
}

static void mount_or_give_up(const char *what, const char *where, const char *kind, unsigned long flags, const char *options) {
    mkdir(where, 0755);
    if (mount(what, where, kind, flags, options))
        give_up(where);
}

#include "service.h"

/* ---- what is sent */

static void flush(struct port *port) {
    size_t done = 0;
    while (done < port->out_bytes) {
        ssize_t written = write(port->fd, port->out + done, port->out_bytes - done);
        if (written <= 0)
            break;
        done += (size_t)written;
    }
    memmove(port->out, port->out + done, port->out_bytes - done);
    port->out_bytes -= done;
}

static void send_frame(struct port *port, uint8_t type, uint32_t channel, const void *payload, uint32_t length) {
    size_t wanted = port->out_bytes + HEADER_BYTES + length;
    if (wanted > port->out_size) {
        port->out_size = 2 * wanted;
        port->out = must(realloc(port->out, port->out_size));
    }
    put_header(port->out + port->out_bytes, type, channel, length);
    if (length)
        memcpy(port->out + port->out_bytes + HEADER_BYTES, payload, length);
    port->out_bytes = wanted;
    flush(port);
}

static void send_pair(struct port *port, uint8_t type, uint32_t channel, uint32_t first, uint32_t second) {
    unsigned char payload[8];
    put32(payload, first);
    put32(payload + 4, second);
    send_frame(port, type, channel, payload, type == ENDED ? 8 : 4);
}

static void send_failure(struct port *port, uint32_t channel, int error, const char *step) {
    unsigned char payload[4 + 256];
    size_t length = strnlen(step, 256);
    put32(payload, (uint32_t)error);
    memcpy(payload + 4, step, length);
    send_frame(port, FAILED, channel, payload, (uint32_t)(4 + length));
}

static void answer(struct port *port, uint32_t channel, int error, const char *step) {
    if (error)
        send_failure(port, channel, error, step);
    else if (channel) /* on channel 0 of the first port nobody waits */
        send_frame(port, DONE, channel, NULL, 0);
}

/* ---- channels */

static void add_piece(struct words *words, const unsigned char *piece, uint32_t length) {
    words->open = must(realloc(words->open, words->open_bytes + length + 1));
    memcpy(words->open + words->open_bytes, piece, length);
    words->open_bytes += length;
    words->open[words->open_bytes] = 0;
}

static void end_word(struct words *words) {
    if (!words->open || words->count >= WORDS_MAX)
        return;
    words->list = must(realloc(words->list, (words->count + 2) * sizeof *words->list));
    words->list[words->count++] = words->open;
    words->list[words->count] = NULL;
    words->open = NULL;
    words->open_bytes = 0;
}

static void free_words(struct words *words) {
    for (size_t number = 0; number < words->count; number++)
        free(words->list[number]);
    free(words->list);
    free(words->open);
    memset(words, 0, sizeof *words);
}

static struct channel *find_channel(struct port *port, uint32_t id, int make) {
    struct channel *channel;
    for (channel = port->channels; channel; channel = channel->next)
        if (channel->id == id)
            return channel;
    if (!make)
        return NULL;
    channel = must(calloc(1, sizeof *channel));
    channel->next = port->channels;
    port->channels = channel;
    channel->port = port;
    channel->id = id;
    channel->in_fd = channel->out_fd = channel->err_fd = -1;
    channel->credit = CREDIT_BYTES;
    return channel;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void forget_channel(struct channel *channel) {
    struct channel **link = &channel->port->channels;
    while (*link != channel)
        link = &(*link)->next;
    *link = channel->next;
    if (channel->pid)
        kill(-channel->pid, SIGKILL);
    if (channel->in_fd == channel->out_fd)
        channel->in_fd = -1;
    close_fd(&channel->in_fd);
    close_fd(&channel->out_fd);
    close_fd(&channel->err_fd);
    free_words(&channel->arguments);
    free_words(&channel->variables);
    free(channel->directory);
    free(channel->user);
    free(channel->input);
    free(channel);
}

/* The payload with a 0 behind it. */
static char *text_of(const struct frame *frame) {
    char *text = must(malloc(frame->length + 1));
    memcpy(text, frame->payload, frame->length);
    text[frame->length] = 0;
    return text;
}

/* ---- users: /etc/passwd and /etc/group of the guest, read by hand; a library of the guest is never opened */

struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[256];
    size_t group_count;
    char home[256], name[64];
};

static int field_line(FILE *file, char *line, size_t size, char **fields, int wanted) {
    while (fgets(line, (int)size, file)) {
        int count = 0;
        char *rest = line;
        line[strcspn(line, "\n")] = 0;
        while (count < wanted && (fields[count] = strsep(&rest, ":")))
            count++;
        if (count == wanted)
            return 1;
    }
    return 0;
}

static int is_number(const char *text) { return *text && strspn(text, "0123456789") == strlen(text) && strlen(text) < 10; }

static int find_user(const char *wanted, struct identity *found) {
    char line[4096], *fields[6];
    FILE *file = fopen("/etc/passwd", "re");
    int is_found = 0;
    while (file && !is_found && field_line(file, line, sizeof line, fields, 6))
        if (is_number(fields[2]) && is_number(fields[3]) && (!strcmp(fields[0], wanted) || !strcmp(fields[2], wanted))) {
            found->uid = (uid_t)atoi(fields[2]);
            found->gid = (gid_t)atoi(fields[3]);
            snprintf(found->home, sizeof found->home, "%s", fields[5]);
            snprintf(found->name, sizeof found->name, "%s", fields[0]);
            is_found = 1;
        }
    if (file)
        fclose(file);
    if (!is_found && is_number(wanted)) {
        found->uid = (uid_t)atoi(wanted);
        found->gid = found->uid;
        is_found = 1;
    }
    return is_found;
}

static int find_groups(const char *wanted, struct identity *found) {
    static char line[65536];
    char *fields[4], *member, *rest;
    FILE *file = fopen("/etc/group", "re");
    int is_found = !wanted;
    while (file && field_line(file, line, sizeof line, fields, 4)) {
        if (!is_number(fields[2]))
            continue;
        if (wanted && (!strcmp(fields[0], wanted) || !strcmp(fields[2], wanted))) {
            found->gid = (gid_t)atoi(fields[2]);
            is_found = 1;
        }
        for (rest = fields[3]; !wanted && (member = strsep(&rest, ","));)
            if (found->name[0] && !strcmp(member, found->name) && found->group_count < 256)
                found->groups[found->group_count++] = (gid_t)atoi(fields[2]);
    }
    if (file)
        fclose(file);
    if (!is_found && is_number(wanted)) {
        found->gid = (gid_t)atoi(wanted);
        is_found = 1;
    }
    return is_found;
}

/* `text` is USER[:GROUP]; 0 if it is understood. */
static int identify(const char *text, struct identity *found) {
    char copy[256];
    memset(found, 0, sizeof *found);
    strcpy(found->home, "/");
    snprintf(copy, sizeof copy, "%s", text && *text ? text : "0");
    char *group = strchr(copy, ':');
    if (group)
        *group++ = 0;
    if (!find_user(copy, found) || !find_groups(group, found))
        return -1;
    return 0;
}

/* ---- programs */

static void set_size(int fd, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(fd, TIOCSWINSZ, &size);
}

static void add_default(struct words *words, const char *name, const char *value) {
    size_t length = strlen(name);
    for (size_t number = 0; number < words->count; number++)
        if (!strncmp(words->list[number], name, length) && words->list[number][length] == '=')
            return;
    add_piece(words, (const unsigned char *)name, (uint32_t)length);
    add_piece(words, (const unsigned char *)"=", 1);
    add_piece(words, (const unsigned char *)value, (uint32_t)strlen(value));
    end_word(words);
}

static _Noreturn void report(int fd, const char *step) {
    unsigned char text[4 + 32];
    put32(text, (uint32_t)errno);
    size_t length = strlen(step);
    memcpy(text + 4, step, length);
    if (write(fd, text, 4 + length) < 0)
        _exit(126);
    _exit(127);
}

static _Noreturn void execute(struct channel *channel, int report_fd, int *stdio, int is_terminal) {
    struct identity identity;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (is_terminal)
        ioctl(stdio[0], TIOCSCTTY, 0);
    for (int number = 0; number < 3; number++)
        dup2(stdio[number], number);
    report_fd = fcntl(report_fd, F_DUPFD_CLOEXEC, 3);
    umask(022);
    errno = ENOENT;
    if (identify(channel->user, &identity))
        report(report_fd, "user");
    add_default(&channel->variables, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    add_default(&channel->variables, "HOME", identity.home);
    add_default(&channel->variables, "USER", identity.name[0] ? identity.name : "root");
    if (is_terminal)
        add_default(&channel->variables, "TERM", "xterm");
    if (setgroups(identity.group_count, identity.groups) || setresgid(identity.gid, identity.gid, identity.gid) ||
        setresuid(identity.uid, identity.uid, identity.uid))
        report(report_fd, "credentials");
    if (chdir(channel->directory ? channel->directory : "/"))
        report(report_fd, "cwd");
    environ = channel->variables.list;
    /* execvpe(3) would hand a file without a magic number to a shell; here that is an error. */
    const char *name = channel->arguments.list[0], *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if (getenv("PATH"))
        path = getenv("PATH");
    if (strchr(name, '/')) {
        execve(name, channel->arguments.list, environ);
        report(report_fd, "execve");
    }
    int worst = ENOENT;
    char *copy = strdup(path), *rest = copy, *directory, full[4096];
    while (copy && (directory = strsep(&rest, ":"))) {
        snprintf(full, sizeof full, "%s/%s", *directory ? directory : ".", name);
        execve(full, channel->arguments.list, environ);
        if (errno != ENOENT && errno != ENOTDIR)
            worst = errno;
    }
    errno = worst;
    report(report_fd, "execve");
}

static int open_streams(struct channel *channel, int *stdio) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    if (channel->flags & STREAM_TTY) {
        struct winsize size = {.ws_row = channel->rows, .ws_col = channel->columns};
        int master, slave;
        if (openpty(&master, &slave, NULL, NULL, &size))
            return -1;
        fcntl(master, F_SETFD, FD_CLOEXEC);
        fcntl(slave, F_SETFD, FD_CLOEXEC);
        channel->in_fd = channel->out_fd = master;
        stdio[0] = stdio[1] = stdio[2] = slave;
    } else {
        if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
            return -1;
        if (channel->flags & STREAM_STDIN ? pipe2(in, O_CLOEXEC) : (in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
            return -1;
        channel->in_fd = in[1];
        channel->out_fd = out[0];
        channel->err_fd = err[0];
        stdio[0] = in[0];
        stdio[1] = out[1];
        stdio[2] = err[1];
        fcntl(channel->err_fd, F_SETFL, O_NONBLOCK);
    }
    fcntl(channel->out_fd, F_SETFL, O_NONBLOCK);
    if (channel->in_fd >= 0)
        fcntl(channel->in_fd, F_SETFL, O_NONBLOCK);
    return 0;
}

static void run(struct channel *channel) {
    int stdio[3], report_pipe[2];
    unsigned char problem[64];
    if (channel->is_started || !channel->arguments.count) {
        send_failure(channel->port, channel->id, EINVAL, "run");
        return;
    }
    channel->is_started = 1;
    if (open_streams(channel, stdio) || pipe2(report_pipe, O_CLOEXEC)) {
        send_failure(channel->port, channel->id, errno, "streams");
        forget_channel(channel);
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        execute(channel, report_pipe[1], stdio, channel->flags & STREAM_TTY);
    int error = errno;
    close(report_pipe[1]);
    close(stdio[0]);
    if (!(channel->flags & STREAM_TTY)) {
        close(stdio[1]);
        close(stdio[2]);
    }
    ssize_t length = pid < 0 ? 0 : read(report_pipe[0], problem, sizeof problem - 1);
    close(report_pipe[0]);
    if (pid < 0) {
        send_failure(channel->port, channel->id, error, "fork");
        forget_channel(channel);
    } else if (length >= 4) {
        problem[length] = 0;
        send_failure(channel->port, channel->id, (int)get32(problem), (char *)problem + 4);
        forget_channel(channel);
    } else {
        channel->pid = pid;
        send_pair(channel->port, STARTED, channel->id, (uint32_t)pid, 0);
        if (channel->flags & (STREAM_STDIN | STREAM_TTY)) {
            channel->input = must(malloc(CREDIT_BYTES));
            send_pair(channel->port, CREDIT, channel->id, CREDIT_BYTES, 0);
        }
    }
}

/* ---- programs that are kept running */

enum { KEPT_REST_SECONDS = 1 };

static void rest(struct kept *kept) {
    kept->pid = 0;
    clock_gettime(CLOCK_MONOTONIC, &kept->due);
    kept->due.tv_sec += KEPT_REST_SECONDS;
}

/* 0, or the error that kept it from being started. */
static int start_kept(struct kept *kept, char *step, size_t step_size) {
    int report_pipe[2], stdio[3];
    unsigned char problem[64];
    snprintf(step, step_size, "keep");
    if (pipe2(report_pipe, O_CLOEXEC))
        return errno;
    stdio[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    stdio[1] = stdio[2] = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    kept->pid = fork();
    if (kept->pid == 0)
        execute(&kept->program, report_pipe[1], stdio, 0);
    int error = kept->pid < 0 ? errno : 0;
    close(report_pipe[1]);
    close_fd(&stdio[0]);
    close_fd(&stdio[1]);
    ssize_t length = error ? 0 : read(report_pipe[0], problem, sizeof problem - 1);
    close(report_pipe[0]);
    if (length >= 4) {
        problem[length] = 0;
        snprintf(step, step_size, "%s", (char *)problem + 4);
        error = (int)get32(problem);
    }
    if (error)
        rest(kept);
    return error;
}

/* The channel's program is no channel's any more. */
static void keep(struct channel *channel) {
    char step[64];
    if (channel->is_started || !channel->arguments.count) {
        send_failure(channel->port, channel->id, EINVAL, "keep");
        return;
    }
    struct kept *kept = must(calloc(1, sizeof *kept));
    kept->program.arguments = channel->arguments;
    kept->program.variables = channel->variables;
    memset(&channel->arguments, 0, sizeof channel->arguments);
    memset(&channel->variables, 0, sizeof channel->variables);
    kept->next = kept_programs;
    kept_programs = kept;
    answer(channel->port, channel->id, start_kept(kept, step, sizeof step), step);
    forget_channel(channel);
}

static void note_end_of_kept(pid_t pid, int status) {
    for (struct kept *kept = kept_programs; kept; kept = kept->next)
        if (kept->pid == pid) {
            say("%s ended with %d: it is started again", kept->program.arguments.list[0], WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
            rest(kept);
        }
}

/* Start those that are due; milliseconds until the next one is, -1 if none will be. */
static int start_due(void) {
    struct timespec now;
    char step[64];
    long next = -1;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (struct kept *kept = kept_programs; kept; kept = kept->next) {
        if (kept->pid)
            continue;
        long left = (kept->due.tv_sec - now.tv_sec) * 1000 + (kept->due.tv_nsec - now.tv_nsec) / 1000000;
        int error = left > 0 ? 0 : start_kept(kept, step, sizeof step);
        if (error)
            say("%s: %s: %s", kept->program.arguments.list[0], step, strerror(error));
        if (left <= 0)
            left = error ? KEPT_REST_SECONDS * 1000 : -1;
        if (left > 0 && (next < 0 || left < next))
            next = left;
    }
    return (int)next;
}

static void give_input(struct channel *channel) {
    while (channel->input_bytes && channel->in_fd >= 0) {
        ssize_t written = write(channel->in_fd, channel->input, channel->input_bytes);
        if (written < 0 && errno == EAGAIN)
            return;
        if (written < 0)
            written = (ssize_t)channel->input_bytes; /* nobody reads it any more */
        channel->input_bytes -= (size_t)written;
        memmove(channel->input, channel->input + written, channel->input_bytes);
        send_pair(channel->port, CREDIT, channel->id, (uint32_t)written, 0);
    }
    if (!channel->is_input_ended || channel->input_bytes)
        return;
    if (channel->flags & STREAM_TTY) {
        channel->is_input_ended = 0;
        if (channel->in_fd >= 0 && write(channel->in_fd, "\4", 1) < 0)
            say("end of input: %s", strerror(errno));
    } else {
        close_fd(&channel->in_fd);
    }
}

static void take_input(struct channel *channel, const struct frame *frame) {
    if (!channel->input || channel->is_input_ended || frame->length > CREDIT_BYTES - channel->input_bytes)
        return;
    memcpy(channel->input + channel->input_bytes, frame->payload, frame->length);
    channel->input_bytes += frame->length;
    give_input(channel);
}

/* What the program wrote, as far as the host takes it; 1 if there may be more. */
static int give_output(struct channel *channel, int *fd, uint8_t type) {
    unsigned char data[FRAME_BYTES_MAX];
    if (*fd < 0 || !channel->credit || channel->port->out_bytes)
        return 0;
    ssize_t length = read(*fd, data, channel->credit < sizeof data ? channel->credit : sizeof data);
    if (length > 0) {
        channel->credit -= (uint32_t)length;
        send_frame(channel->port, type, channel->id, data, (uint32_t)length);
        return 1;
    }
    if (length < 0 && errno == EAGAIN)
        return 0;
    if (fd == &channel->out_fd && channel->in_fd == channel->out_fd)
        channel->in_fd = -1;
    close_fd(fd);
    return 0;
}

/* The program ended: once what it wrote has been given out the host is told, whoever else still holds its streams. */
static void settle(struct channel *channel) {
    while (give_output(channel, &channel->out_fd, OUTPUT) || give_output(channel, &channel->err_fd, ERRORS))
        continue;
    if (channel->port->out_bytes || (!channel->credit && (channel->out_fd >= 0 || channel->err_fd >= 0)))
        return;
    int status = channel->wait_status;
    if (channel == find_channel(&ports[MAIN], 0, 0))
        sync();
    send_pair(channel->port, ENDED, channel->id, WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : 0,
              WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 0);
    forget_channel(channel);
}

static void reap(void) {
    struct signalfd_siginfo information;
    while (read(signal_fd, &information, sizeof information) == (ssize_t)sizeof information)
        continue;
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        note_end_of_kept(pid, status);
        for (size_t number = 0; number < PORTS; number++)
            for (struct channel *channel = ports[number].channels; channel; channel = channel->next)
                if (channel->pid == pid) {
                    channel->pid = 0;
                    channel->is_ended = 1;
                    channel->wait_status = status;
                }
    }
}

/* ---- files, names, interfaces */

static void write_file(struct port *port, const struct frame *frame) {
    const unsigned char *zero = frame->length > 4 ? memchr(frame->payload + 4, 0, frame->length - 4) : NULL;
    if (!zero) {
        send_failure(port, frame->channel, EINVAL, "write");
        return;
    }
    const char *path = (const char *)frame->payload + 4;
    size_t length = frame->length - (size_t)(zero + 1 - frame->payload);
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW;
    int fd = open(path, flags, get32(frame->payload));
    if (fd < 0 && errno == ELOOP && !unlink(path)) /* a link, as /etc/resolv.conf often is */
        fd = open(path, flags, get32(frame->payload));
    int error = fd < 0 ? errno : 0;
    if (!error && length && write(fd, zero + 1, length) != (ssize_t)length)
        error = errno ? errno : EIO;
    if (fd >= 0)
        close(fd);
    answer(port, frame->channel, error, path);
}

static void make_directories(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
}

static void mount_share(struct port *port, const struct frame *frame) {
    char *text = text_of(frame), *end = text + frame->length;
    char *mode = text + strlen(text) + 1, *path = mode < end ? mode + strlen(mode) + 1 : end;
    int error = EINVAL;
    if (path < end && *path == '/') {
        make_directories(path);
        unsigned long flags = MS_NOSUID | MS_NODEV | (strcmp(mode, "ro") ? 0 : MS_RDONLY);
        error = mount(text, path, "virtiofs", flags, NULL) ? errno : 0;
    }
    answer(port, frame->channel, error, path < end ? path : "mount");
    free(text);
}

#include "accounts.h"

static int try_nic(struct port *port, uint32_t channel, const unsigned char *words, uint32_t length) {
    char step[64] = "nic";
    int error = length && !words[length - 1] ? set_up_nic((const char *)words, length, step, sizeof step) : EINVAL;
    if (error == ENODEV)
        return 0;
    answer(port, channel, error, step);
    return 1;
}

static void want_nic(struct port *port, const struct frame *frame) {
    if (try_nic(port, frame->channel, frame->payload, frame->length))
        return;
    if (pending_count == PENDING_NICS_MAX) {
        send_failure(port, frame->channel, ENOSPC, "nic");
        return;
    }
    struct pending_nic *nic = &pending[pending_count++];
    nic->port = port;
    nic->channel = frame->channel;
    nic->length = frame->length;
    nic->words = must(malloc(frame->length));
    memcpy(nic->words, frame->payload, frame->length);
}

/* The kernel found or lost a device: an interface that is waited for may be there. */
static void look_again(void) {
    char text[8192];
    while (recv(uevent_fd, text, sizeof text, MSG_DONTWAIT) > 0)
        continue;
    for (size_t number = 0; number < pending_count;) {
        if (!try_nic(pending[number].port, pending[number].channel, pending[number].words, pending[number].length)) {
            number++;
            continue;
        }
        free(pending[number].words);
        pending[number] = pending[--pending_count];
    }
}

/* ---- ports */

static void reset_port(struct port *port) {
    while (port->channels)
        forget_channel(port->channels);
    for (size_t number = 0; number < pending_count;)
        if (pending[number].port == port) {
            free(pending[number].words);
            pending[number] = pending[--pending_count];
        } else {
            number++;
        }
    port->out_bytes = 0;
}

static void collect(struct channel *channel, const struct frame *frame) {
    switch (frame->type) {
    case ARGUMENT:
        add_piece(&channel->arguments, frame->payload, frame->length);
        break;
    case VARIABLE:
        add_piece(&channel->variables, frame->payload, frame->length);
        break;
    case END_OF_WORD:
        end_word(&channel->arguments);
        end_word(&channel->variables);
        break;
    case DIRECTORY:
        free(channel->directory);
        channel->directory = text_of(frame);
        break;
    case USER:
        free(channel->user);
        channel->user = text_of(frame);
        break;
    case STREAMS:
        if (frame->length >= 6) {
            channel->flags = get16(frame->payload);
            channel->rows = get16(frame->payload + 2);
            channel->columns = get16(frame->payload + 4);
        }
        break;
    case RUN:
        run(channel);
        break;
    case KEEP:
        keep(channel);
        break;
    }
}

static void steer(struct channel *channel, const struct frame *frame) {
    switch (frame->type) {
    case INPUT:
        take_input(channel, frame);
        break;
    case END_OF_INPUT:
        channel->is_input_ended = channel->input != NULL;
        give_input(channel);
        break;
    case SIGNAL:
        if (channel->pid && frame->length >= 4)
            kill(channel->pid, (int)get32(frame->payload));
        break;
    case RESIZE:
        if (channel->flags & STREAM_TTY && channel->out_fd >= 0 && frame->length >= 4)
            set_size(channel->out_fd, get16(frame->payload), get16(frame->payload + 2));
        break;
    case CREDIT:
        if (frame->length >= 4)
            channel->credit += get32(frame->payload);
        break;
    case CLOSE:
        forget_channel(channel);
        break;
    }
}

static void obey(struct port *port, const struct frame *frame) {
    struct channel *channel;
    switch (frame->type) {
    case HELLO:
        reset_port(port);
        send_frame(port, HELLO, 0, frame->payload, frame->length);
        break;
    case WRITE:
        write_file(port, frame);
        break;
    case HOSTNAME:
        answer(port, frame->channel, sethostname((const char *)frame->payload, frame->length) ? errno : 0, "hostname");
        break;
    case NIC:
        want_nic(port, frame);
        break;
    case MOUNT:
        mount_share(port, frame);
        break;
    case GROUP:
    case ACCOUNT:
        take_account(port, frame);
        break;
    case POWER_OFF:
        if (is_service) {
            ask_for_power_off();
            break;
        }
        sync();
        reboot(RB_POWER_OFF);
        break;
    default:
        channel = find_channel(port, frame->channel, frame->type <= RUN || frame->type == KEEP);
        if (channel && (frame->type <= RUN || frame->type == KEEP))
            collect(channel, frame);
        else if (channel)
            steer(channel, frame);
    }
}

/* `is_gone`: nobody is at the port's other end, which may be told later than what came from there. */
static void listen_to(struct port *port, int is_gone) {
    if (is_gone && port->is_connected) {
        reset_port(port);
        port->in_bytes = 0;
    }
    port->is_connected = !is_gone;
    for (;;) {
        ssize_t length = read(port->fd, port->in + port->in_bytes, sizeof port->in - port->in_bytes);
        if (length <= 0)
            break;
        port->in_bytes += (size_t)length;
        size_t used = 0, taken;
        struct frame frame;
        while ((taken = next_frame(port->in + used, port->in_bytes - used, &frame))) {
            if (frame.type)
                obey(port, &frame);
            used += taken;
        }
        memmove(port->in, port->in + used, port->in_bytes - used);
        port->in_bytes -= used;
    }
    flush(port);
}

/* The device of the port of this name, once the kernel has it. */
static int open_port(const char *name) {
    DIR *directory = opendir("/sys/class/virtio-ports");
    int found = -1;
    for (struct dirent *entry; directory && found < 0 && (entry = readdir(directory));) {
        char path[300], text[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        if (length <= 0 || strcspn(text, "\n") != strlen(name) || strncmp(text, name, strlen(name)))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        found = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (directory)
        closedir(directory);
    return found;
}

static void open_ports(void) {
    for (size_t number = 0; number < PORTS; number++) {
        char text[8192];
        while ((ports[number].fd = open_port(port_names[number])) < 0)
            if (recv(uevent_fd, text, sizeof text, 0) < 0 && errno != ENOBUFS)
                give_up("waiting for the host's ports");
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = (uint32_t)number};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, ports[number].fd, &event))
            give_up("epoll");
    }
}

/* ---- the loop */

static void serve_ports(void) {
    struct epoll_event events[PORTS];
    int count = epoll_wait(epoll_fd, events, PORTS, 0);
    for (int number = 0; number < count; number++)
        listen_to(&ports[events[number].data.u32], events[number].events & EPOLLHUP && events[number].data.u32 == CONTROL);
}

static void serve_channels(void) {
    for (size_t number = 0; number < PORTS; number++)
        for (struct channel *channel = ports[number].channels, *next; channel; channel = next) {
            next = channel->next;
            give_input(channel);
            give_output(channel, &channel->out_fd, OUTPUT);
            give_output(channel, &channel->err_fd, ERRORS);
            if (channel->is_ended)
                settle(channel);
        }
}

static size_t watch_channels(struct pollfd *watched, size_t count, size_t size) {
    for (size_t number = 0; number < PORTS; number++)
        for (struct channel *channel = ports[number].channels; channel && count + 3 <= size; channel = channel->next) {
            int is_open = channel->credit && !ports[number].out_bytes;
            if (is_open && channel->out_fd >= 0)
                watched[count++] = (struct pollfd){.fd = channel->out_fd, .events = POLLIN};
            if (is_open && channel->err_fd >= 0)
                watched[count++] = (struct pollfd){.fd = channel->err_fd, .events = POLLIN};
            if (channel->input_bytes && channel->in_fd >= 0)
                watched[count++] = (struct pollfd){.fd = channel->in_fd, .events = POLLOUT};
        }
    return count;
}

static _Noreturn void serve(void) {
    static struct pollfd watched[3 + 3 * 1024];
    for (;;) {
        watched[0] = (struct pollfd){.fd = epoll_fd, .events = POLLIN};
        watched[1] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
        watched[2] = (struct pollfd){.fd = uevent_fd, .events = POLLIN};
        size_t count = watch_channels(watched, 3, sizeof watched / sizeof *watched);
        poll(watched, (nfds_t)count, start_due());
        if (watched[1].revents)
            reap();
        if (watched[2].revents)
            look_again();
        serve_ports();
        serve_channels();
    }
}

/* ---- booting */

static void load_modules(void) {
    char path[256];
    FILE *list = fopen("/modules", "re");
    while (list && fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            say("module %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (list)
        fclose(list);
}

static void option(const char *name, char *value, size_t size) {
    static char line[8192];
    char *rest = line, *word;
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    line[length > 0 ? length : 0] = 0;
    *value = 0;
    while ((word = strsep(&rest, " \n")))
        if (!strncmp(word, name, strlen(name)) && word[strlen(name)] == '=')
            snprintf(value, size, "%s", word + strlen(name) + 1);
}

/* The kernel's modules, which are not the root's; a root without a place for them goes without. */
static void show_modules(void) {
    struct utsname name;
    char path[256];
    uname(&name);
    snprintf(path, sizeof path, "usr/lib/modules/%s", name.release);
    mkdir("usr/lib/modules", 0755);
    mkdir(path, 0755);
    char from[256];
    snprintf(from, sizeof from, "/lower/modules/%s", name.release);
    if (mount(from, path, NULL, MS_BIND, NULL))
        say("modules: %s", strerror(errno));
}

/* Devices whose module is loaded when somebody opens them, such as /dev/net/tun: what udev and kmod do elsewhere. */
static void make_static_nodes(void) {
    struct utsname name;
    char path[300], line[256], module[64], node[128], kind;
    unsigned major, minor;
    uname(&name);
    snprintf(path, sizeof path, "/usr/lib/modules/%s/modules.devname", name.release);
    FILE *list = fopen(path, "re");
    while (list && fgets(line, sizeof line, list)) {
        if (sscanf(line, "%63s %127s %c%u:%u", module, node, &kind, &major, &minor) != 5 || strstr(node, ".."))
            continue;
        snprintf(path, sizeof path, "/dev/%s", node);
        char *slash = strrchr(path, '/');
        *slash = 0;
        make_directories(path);
        *slash = '/';
        mode_t mode = (kind == 'b' ? S_IFBLK : S_IFCHR) | (strcmp(module, "tun") && strcmp(module, "fuse") ? 0600 : 0666);
        if (!mknod(path, mode, makedev(major, minor)))
            chmod(path, mode & 0777);
    }
    if (list)
        fclose(list);
}

static void mount_root(void) {
    char root[128];
    option("nestbed.root", root, sizeof root);
    if (!strncmp(root, "disk:", 5))
        hand_over(root + 5);
    errno = EINVAL;
    if (strncmp(root, "virtiofs:", 9))
        give_up("nestbed.root is not understood");
    mount_or_give_up(root + 9, "/lower", "virtiofs", MS_RDONLY | MS_NODEV, NULL);
    mount_or_give_up("changes", "/changes", "tmpfs", 0, "mode=0755");
    mkdir("/changes/upper", 0755);
    mkdir("/changes/work", 0755);
    mount_or_give_up("root", "/root", "overlay", 0, "lowerdir=/lower/root,upperdir=/changes/upper,workdir=/changes/work");
    if (chdir("/root"))
        give_up("root");
    mount_or_give_up("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_give_up("sysfs", "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_give_up("devtmpfs", "dev", "devtmpfs", MS_NOSUID, "mode=0755");
    mount_or_give_up("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5");
    mount_or_give_up("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_or_give_up("run", "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    mkdir("run/lock", 01777);
    /* The node's is not shown: what root keeps there is root's. */
    mount_or_give_up("home", "root", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700");
    show_modules();
    if (mount("cgroup2", "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        say("cgroups: %s", strerror(errno));
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        give_up("changing the root");
    if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") || symlink("/proc/self/fd/1", "/dev/stdout") ||
        symlink("/proc/self/fd/2", "/dev/stderr"))
        say("links in /dev: %s", strerror(errno));
    make_static_nodes();
}

static void open_news(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    uevent_fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    if (signal_fd < 0 || epoll_fd < 0 || uevent_fd < 0 || bind(uevent_fd, (struct sockaddr *)&address, sizeof address))
        give_up("news of the kernel");
}

static _Noreturn void be_there(void) {
    bring_up_loopback();
    open_ports();
    send_frame(&ports[MAIN], READY, 0, NULL, 0);
    serve();
}

int main(int count, char **words) {
    is_service = getpid() != 1; /* the kernel gives its own first process words, too */
    if (is_service && count == 2 && !strcmp(words[1], "install")) {
        install("/run");
        return 0;
    }
    if (is_service && count == 4 && !strcmp(words[1], "watch"))
        return watch(words[2], (pid_t)atoi(words[3]));
    if (is_service) {
        open_news();
        be_there();
    }
    mount_or_give_up("proc", "/proc", "proc", 0, NULL);
    mount_or_give_up("sysfs", "/sys", "sysfs", 0, NULL);
    mount_or_give_up("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    open_news();
    load_modules();
    mount_root();
    be_there();
}
