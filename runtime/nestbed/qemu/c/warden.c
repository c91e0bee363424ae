/*
 * The first process of the sandbox a virtual machine runs in: starts QEMU and what it needs, and stands between the guest's program and
 * the streams, signals and exit status that the keeper knows. With it a virtual machine is to the keeper a program like any other.
 *
 *     warden run              do what /vm/plan says (nestbed/qemu/plan.py writes it)
 *     warden tap IF TAP UID   make the tap for the interface IF: every frame that enters one leaves by the other
 *     warden untap TAP
 *
 * What it executes loses every right first: a uid of its own, no capability. It writes, for nestbedd:
 *
 *     /vm/state               one line: booting | answering | addressed | started PID | failed ERRNO STEP | exited CODE | signaled NUMBER | off | lost WHY
 *     /vm/console.log[.1]     what the guest wrote to its console, at most CONSOLE_BYTES_MAX each
 *
 * QEMU inherits descriptors 10 (the agent's port for the program), 11 (console), 12 and 13 (listening: the agent's port for nestbedd,
 * QMP), and 14, 15... (one for each virtiofsd); a virtiofsd inherits 10, a listening socket.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <linux/pkt_cls.h>
#include <linux/tc_act/tc_mirred.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

#include "frames.h"
#include "netlink.h"

enum { LAST_CHANNEL = 1, NIC_CHANNEL = 2 };
enum { SHARES_MAX = 16, FIRST_FD = 10, SHARE_FD = 14, OWN_FD = 64, CONSOLE_BYTES_MAX = 1 << 20, TAIL_BYTES = 1024, INPUT_BYTES = 8192 };

/* virtiofsd changes its root and its bounding set, and gives these up; FOWNER it keeps: an overlay opens files of others with O_NOATIME. */
static const uint32_t SHARE_RIGHTS = 1u << CAP_SYS_CHROOT | 1u << CAP_SETPCAP | 1u << CAP_FOWNER;
/* One that shares a directory with the guest's users acts for them: it is root, with rights over files alone. */
static const uint32_t FILES_RIGHTS = 1u << CAP_SYS_CHROOT | 1u << CAP_SETPCAP | 1u << CAP_FOWNER | 1u << CAP_CHOWN |
                                     1u << CAP_DAC_OVERRIDE | 1u << CAP_FSETID | 1u << CAP_SETUID | 1u << CAP_SETGID;

struct stream {
    int fd;
    uint8_t type;
    unsigned char data[CREDIT_BYTES];
    size_t bytes;
};

static char **words; /* /vm/plan */
static size_t word_count;
static uid_t vm_uid;
static pid_t qemu_pid, share_pids[SHARES_MAX];
static size_t share_count;
static int signal_fd, main_fd, console_fd, errors_fd;
static struct stream output = {.fd = 1, .type = OUTPUT}, errors = {.fd = 2, .type = ERRORS};
static unsigned char received[2 * (HEADER_BYTES + FRAME_BYTES_MAX)], *outgoing;
static size_t received_bytes, outgoing_bytes;
static uint32_t input_credit;
static size_t nic_count, nics_done;
static int is_told;
static int has_program, is_started, is_input_open, is_over, exit_code;
static char tail[TAIL_BYTES + 1];
static size_t tail_bytes;
static off_t console_bytes;
static int log_fd = -1;

static void write_state(const char *format, ...) {
    char text[TAIL_BYTES + 256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    int fd = open("/vm/state.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || rename("/vm/state.new", "/vm/state"))
        dprintf(2, "nestbed: state %s: %s\n", text, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static _Noreturn void fail(const char *step) {
    write_state("lost %s: %s", step, strerror(errno));
    exit(255);
}

/* ---- taps */

static int tap_ioctl(const char *name, int *fd) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    *fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    return *fd < 0 ? -1 : ioctl(*fd, TUNSETIFF, &request);
}

static int set_up(unsigned index) {
    struct request request;
    struct ifinfomsg body = {.ifi_index = (int)index, .ifi_flags = IFF_UP | IFF_NOARP, .ifi_change = IFF_UP | IFF_NOARP};
    begin(&request, RTM_NEWLINK, 0, &body, sizeof body);
    return ask(&request);
}

static int set_mtu(unsigned index, const char *of) {
    struct ifreq asked = {0};
    struct request request;
    struct ifinfomsg body = {.ifi_index = (int)index};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), error;
    snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", of);
    error = ioctl(fd, SIOCGIFMTU, &asked) ? errno : 0;
    close(fd);
    if (error)
        return error;
    uint32_t mtu = (uint32_t)asked.ifr_mtu;
    begin(&request, RTM_NEWLINK, 0, &body, sizeof body);
    attribute(&request, IFLA_MTU, &mtu, sizeof mtu);
    return ask(&request);
}

/* Whatever enters by `from` leaves by `to`: an ingress qdisc, u32 that matches all, mirred (tc-u32(8), tc-mirred(8)). */
static int redirect(unsigned from, unsigned to) {
    struct request request;
    struct tcmsg qdisc = {.tcm_ifindex = (int)from, .tcm_handle = 0xffff0000, .tcm_parent = TC_H_INGRESS};
    begin(&request, RTM_NEWQDISC, NLM_F_CREATE, &qdisc, sizeof qdisc);
    attribute(&request, TCA_KIND, "ingress", 8);
    int error = ask(&request);
    if (error && error != EEXIST)
        return error;
    struct tcmsg filter = {.tcm_ifindex = (int)from, .tcm_parent = 0xffff0000, .tcm_info = 1 << 16 | htons(0x0003) /* ETH_P_ALL */};
    struct {
        struct tc_u32_sel selector;
        struct tc_u32_key key;
    } all = {.selector = {.flags = TC_U32_TERMINAL, .nkeys = 1}};
    struct tc_mirred mirred = {.action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR, .ifindex = to};
    begin(&request, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &filter, sizeof filter);
    attribute(&request, TCA_KIND, "u32", 4);
    struct rtattr *options = begin_nest(&request, TCA_OPTIONS);
    attribute(&request, TCA_U32_SEL, &all, sizeof all);
    struct rtattr *actions = begin_nest(&request, TCA_U32_ACT), *first = begin_nest(&request, 1);
    attribute(&request, TCA_ACT_KIND, "mirred", 7);
    struct rtattr *parameters = begin_nest(&request, TCA_ACT_OPTIONS);
    attribute(&request, TCA_MIRRED_PARMS, &mirred, sizeof mirred);
    end_nest(&request, parameters);
    end_nest(&request, first);
    end_nest(&request, actions);
    end_nest(&request, options);
    error = ask(&request);
    return error == EEXIST ? 0 : error;
}

/* Idempotent: after a restart of the machine the tap of the run before is still there. */
static int make_tap(const char *interface, const char *tap, uid_t owner) {
    int fd, error = 0;
    if (tap_ioctl(tap, &fd) || ioctl(fd, TUNSETOWNER, owner) || ioctl(fd, TUNSETPERSIST, 1))
        error = errno;
    if (fd >= 0)
        close(fd);
    unsigned inner = if_nametoindex(interface), outer = if_nametoindex(tap);
    if (!error && (!inner || !outer))
        error = ENODEV;
    if (!error)
        error = set_mtu(outer, interface);
    if (!error)
        error = redirect(inner, outer);
    if (!error)
        error = redirect(outer, inner);
    if (!error)
        error = set_up(outer);
    return error;
}

static int remove_tap(const char *tap) {
    int fd, error = 0;
    if (tap_ioctl(tap, &fd) || ioctl(fd, TUNSETPERSIST, 0))
        error = errno;
    if (fd >= 0)
        close(fd);
    return error;
}

/* ---- programs */

static void read_plan(void) {
    static char text[1 << 18];
    int fd = open("/vm/plan", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length <= 0)
        fail("plan");
    close(fd);
    words = calloc((size_t)length + 2, sizeof *words);
    for (char *at = text; at < text + length; at += strlen(at) + 1)
        words[word_count++] = at;
}

/* Give a descriptor the number `to`. */
static int renumber(int fd, int to) {
    if (fd == to)
        return 0;
    int error = dup3(fd, to, O_CLOEXEC) < 0;
    close(fd);
    return error;
}

/* A listening socket without a name that anything else could reach; `fd` is its number. */
static int listen_at(const char *path, int fd) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = offsetof(struct sockaddr_un, sun_path);
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (path) {
        unlink(path);
        strcpy(address.sun_path, path);
        length = sizeof address;
    }
    if (made < 0 || bind(made, (struct sockaddr *)&address, length) || listen(made, 8) || renumber(made, fd))
        fail("socket");
    return fd;
}

static void connect_to(int listener, int fd) {
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0 || getsockname(listener, (struct sockaddr *)&address, &length) || connect(made, (struct sockaddr *)&address, length) ||
        renumber(made, fd))
        fail("connect");
}

/* One end for QEMU under the number `fd`, the other for us. */
static int pair(int fd) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) || renumber(ends[1], fd))
        fail("socketpair");
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    return ends[0];
}

/* Become a user with no capability but `kept` (a mask), which a program executed next still has. */
static int lose_rights(uid_t uid, uint32_t kept) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = kept, .permitted = kept, .inheritable = kept}};
    if (prctl(PR_SET_KEEPCAPS, kept != 0) || setgroups(0, NULL) || setresgid(uid, uid, uid) ||
        setresuid(uid, uid, uid) || syscall(SYS_capset, &header, data))
        return -1;
    for (unsigned number = 0; number < 32; number++)
        if (kept >> number & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))
            return -1;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static pid_t start(char **argv, const int *given, size_t count, uid_t uid, uint32_t kept, int errors_to) {
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, 0);
    dup2(errors_to, 1);
    dup2(errors_to, 2);
    int spare[32];
    for (size_t number = 0; number < count; number++)
        spare[number] = fcntl(given[number], F_DUPFD_CLOEXEC, 2 * OWN_FD);
    for (size_t number = 0; number < count; number++)
        dup2(spare[number], FIRST_FD + (int)number);
    char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) { /* virtiofsd has one for each file that the guest knows */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (lose_rights(uid, kept)) {
        perror("credentials");
        _exit(126);
    }
    execve(argv[0], argv, environment);
    perror(argv[0]);
    _exit(127);
}

/* The words of a command from `*at` to the next empty one. */
static char **command(size_t *at) {
    char **argv = words + *at;
    while (*at < word_count && *words[*at])
        ++*at;
    words[*at] = NULL;
    return argv;
}

/* What is opened from here on gets a number from OWN_FD up, so that those below can be dealt out. */
static void reserve_numbers(void) {
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int number = FIRST_FD; number < OWN_FD; number++)
        dup3(fd, number, O_CLOEXEC);
    for (int number = 3; number < FIRST_FD; number++)
        if (fcntl(number, F_GETFD) < 0)
            dup3(fd, number, O_CLOEXEC);
}

static void start_all(void) {
    int given[4 + SHARES_MAX] = {10, 11, 12, 13}, pipes[2];
    reserve_numbers();
    if (pipe2(pipes, O_CLOEXEC))
        fail("pipe");
    errors_fd = pipes[0];
    fcntl(errors_fd, F_SETFL, O_NONBLOCK);
    main_fd = pair(10);
    console_fd = pair(11);
    listen_at("/vm/agent.sock", 12);
    listen_at("/vm/qmp.sock", 13);
    for (size_t at = 0; at < word_count; at++) {
        if (!strcmp(words[at], "uid")) {
            vm_uid = (uid_t)strtoul(words[++at], NULL, 10);
        } else if (!strcmp(words[at], "tap") && at + 2 < word_count) {
            errno = make_tap(words[at + 1], words[at + 2], vm_uid);
            if (errno)
                fail("tap");
            at += 2;
        } else if ((!strcmp(words[at], "share") || !strcmp(words[at], "files")) && share_count < SHARES_MAX) {
            int fd = listen_at(NULL, 50), is_root = *words[at] == 'f';
            at++;
            share_pids[share_count] =
                start(command(&at), &fd, 1, is_root ? 0 : vm_uid, is_root ? FILES_RIGHTS : SHARE_RIGHTS, pipes[1]);
            connect_to(fd, SHARE_FD + (int)share_count);
            close(fd);
            given[4 + share_count] = SHARE_FD + (int)share_count;
            share_count++;
        } else if (!strcmp(words[at], "qemu")) {
            at++;
            qemu_pid = start(command(&at), given, 4 + share_count, vm_uid, 0, pipes[1]);
        }
    }
    close(pipes[1]);
    for (int fd = FIRST_FD; fd < OWN_FD; fd++)
        close(fd);
}

/* ---- the guest's program */

static void send_up(const unsigned char *data, size_t length) {
    if (length) {
        outgoing = realloc(outgoing, outgoing_bytes + length);
        if (!outgoing)
            fail("memory");
        memcpy(outgoing + outgoing_bytes, data, length);
        outgoing_bytes += length;
    }
    size_t done = 0;
    while (done < outgoing_bytes) {
        ssize_t written = write(main_fd, outgoing + done, outgoing_bytes - done);
        if (written <= 0)
            break;
        done += (size_t)written;
    }
    memmove(outgoing, outgoing + done, outgoing_bytes - done);
    outgoing_bytes -= done;
}

static void send_frame(uint8_t type, const void *payload, uint32_t length) {
    unsigned char header[HEADER_BYTES];
    put_header(header, type, 0, length);
    send_up(header, sizeof header);
    send_up(payload, length);
}

static void send_number(uint8_t type, uint32_t number) {
    unsigned char payload[4];
    put32(payload, number);
    send_frame(type, payload, 4);
}

static void send_size(void) {
    struct winsize size;
    unsigned char payload[4];
    if (ioctl(0, TIOCGWINSZ, &size))
        return;
    payload[0] = (unsigned char)size.ws_row;
    payload[1] = (unsigned char)(size.ws_row >> 8);
    payload[2] = (unsigned char)size.ws_col;
    payload[3] = (unsigned char)(size.ws_col >> 8);
    send_frame(RESIZE, payload, 4);
}

static void send_file(const char *path) {
    unsigned char data[4096];
    ssize_t length;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail(path);
    while ((length = read(fd, data, sizeof data)) > 0)
        send_up(data, (size_t)length);
    close(fd);
}

/* Give on what the program wrote; what was given on may be written again. */
static void give(struct stream *stream) {
    size_t done = 0;
    while (done < stream->bytes) {
        ssize_t written = write(stream->fd, stream->data + done, stream->bytes - done);
        if (written < 0 && errno == EAGAIN)
            break;
        if (written < 0)
            written = (ssize_t)(stream->bytes - done); /* nobody reads it any more */
        done += (size_t)written;
    }
    if (!done)
        return;
    memmove(stream->data, stream->data + done, stream->bytes - done);
    stream->bytes -= done;
    send_number(CREDIT, (uint32_t)done);
}

static void take(struct stream *stream, const struct frame *frame) {
    size_t length = frame->length;
    if (length > sizeof stream->data - stream->bytes)
        length = sizeof stream->data - stream->bytes; /* more than it was granted */
    memcpy(stream->data + stream->bytes, frame->payload, length);
    stream->bytes += length;
    give(stream);
}

static void end(int code) {
    if (is_over)
        return;
    is_over = 1;
    exit_code = code;
    kill(qemu_pid, SIGTERM);
}

/* A start that failed is not for the restart policy to repeat: wait for nestbedd, which reads the state, to end us. */
static void failed(const struct frame *frame) {
    char step[300];
    snprintf(step, sizeof step, "%.*s", (int)(frame->length > 4 ? frame->length - 4 : 0), (const char *)frame->payload + 4);
    write_state("failed %u %s", frame->length >= 4 ? get32(frame->payload) : (unsigned)EIO, step);
    kill(qemu_pid, SIGKILL);
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigwait(&set, &number);
    exit(127);
}

static void ended(uint32_t signal_number, uint32_t code) {
    if (signal_number)
        write_state("signaled %u", signal_number);
    else
        write_state("exited %u", code & 255);
    end(signal_number ? 128 + ((int)signal_number & 127) : (int)(code & 255));
}

/* What the guest was told on these channels was done: a NIC has its addresses, all that a machine without a program was told. */
static void note_done(uint32_t channel) {
    is_told |= channel == LAST_CHANNEL;
    nics_done += channel == NIC_CHANNEL;
    if (is_started)
        return;
    if (nics_done >= nic_count && is_told) {
        is_started = 1;
        write_state("started 0");
    } else if (channel == NIC_CHANNEL && nics_done == nic_count) {
        write_state("addressed");
    }
}

static void obey(const struct frame *frame) {
    switch (frame->type) {
    case READY:
        if (!is_started)
            write_state("answering");
        send_file("/vm/program");
        break;
    case STARTED:
        is_started = 1;
        if (frame->length >= 4)
            write_state("started %u", get32(frame->payload));
        if (isatty(0))
            send_size();
        break;
    case FAILED:
        failed(frame);
        break;
    case OUTPUT:
        take(&output, frame);
        break;
    case ERRORS:
        take(&errors, frame);
        break;
    case CREDIT:
        if (frame->length >= 4)
            input_credit += get32(frame->payload);
        break;
    case ENDED:
        if (frame->length >= 8)
            ended(get32(frame->payload), get32(frame->payload + 4));
        break;
    case DONE:
        note_done(frame->channel);
        break;
    }
}

static void listen_to_guest(void) {
    for (;;) {
        ssize_t length = read(main_fd, received + received_bytes, sizeof received - received_bytes);
        if (length <= 0)
            return;
        received_bytes += (size_t)length;
        size_t used = 0, taken;
        struct frame frame;
        while ((taken = next_frame(received + used, received_bytes - used, &frame))) {
            if (frame.type)
                obey(&frame);
            used += taken;
        }
        memmove(received, received + used, received_bytes - used);
        received_bytes -= used;
    }
}

static void take_input(void) {
    unsigned char data[INPUT_BYTES];
    ssize_t length = read(0, data, input_credit < sizeof data ? input_credit : sizeof data);
    if (length > 0) {
        input_credit -= (uint32_t)length;
        send_frame(INPUT, data, (uint32_t)length);
    } else if (length == 0 || (errno != EAGAIN && errno != EINTR)) {
        is_input_open = 0;
        send_frame(END_OF_INPUT, NULL, 0);
    }
}

/* ---- the rest */

static void open_console_log(int flags) {
    if (log_fd >= 0)
        close(log_fd);
    log_fd = open("/vm/console.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    console_bytes = log_fd < 0 ? 0 : lseek(log_fd, 0, SEEK_END);
}

static void keep_console(void) {
    unsigned char data[4096];
    ssize_t length;
    while ((length = read(console_fd, data, sizeof data)) > 0) {
        if (console_bytes + length > CONSOLE_BYTES_MAX) {
            rename("/vm/console.log", "/vm/console.log.1");
            open_console_log(O_TRUNC);
        }
        /* Without a program the console is what there is to see; who does not look is not waited for. */
        if (!has_program && write(1, data, (size_t)length) < 0)
            errno = 0;
        if (log_fd >= 0 && write(log_fd, data, (size_t)length) == length)
            console_bytes += length;
    }
}

static void keep_errors(void) {
    char data[512];
    ssize_t length;
    while ((length = read(errors_fd, data, sizeof data)) > 0) {
        size_t room = TAIL_BYTES - (size_t)length;
        if (tail_bytes > room) {
            memmove(tail, tail + tail_bytes - room, room);
            tail_bytes = room;
        }
        memcpy(tail + tail_bytes, data, (size_t)length);
        tail_bytes += (size_t)length;
        tail[tail_bytes] = 0;
    }
    if (length == 0) {
        close(errors_fd);
        errors_fd = -1;
    }
}

static void describe(char *text, size_t size, const char *who, int status) {
    keep_errors();
    while (tail_bytes && tail[tail_bytes - 1] == '\n')
        tail[--tail_bytes] = 0;
    char *line = strrchr(tail, '\n');
    line = line ? line + 1 : tail;
    if (WIFSIGNALED(status))
        snprintf(text, size, "%s was ended by signal %d%s%s", who, WTERMSIG(status), *line ? ": " : "", line);
    else
        snprintf(text, size, "%s ended with code %d%s%s", who, WEXITSTATUS(status), *line ? ": " : "", line);
}

static _Noreturn void finish(void) {
    /* The program ended with all it wrote; give it on before that is told. */
    while (output.bytes || errors.bytes) {
        struct pollfd watched[2] = {{.fd = output.bytes ? 1 : -1, .events = POLLOUT}, {.fd = errors.bytes ? 2 : -1, .events = POLLOUT}};
        poll(watched, 2, -1);
        give(&output);
        give(&errors);
    }
    exit(exit_code);
}

static void reap(void) {
    pid_t pid;
    int status;
    char text[TAIL_BYTES + 128];
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        int is_share = 0;
        for (size_t number = 0; number < share_count; number++)
            is_share |= share_pids[number] == pid;
        if (pid == qemu_pid) {
            listen_to_guest();
            keep_console();
            if (is_over)
                finish();
            describe(text, sizeof text, "QEMU", status);
            if (WIFEXITED(status) && !WEXITSTATUS(status)) {
                write_state("off");
                exit(0);
            }
            write_state("lost %s", text);
            exit(255);
        }
        /* With code 0 it ends when QEMU has hung up. */
        if (is_share && !is_over && !(WIFEXITED(status) && !WEXITSTATUS(status))) {
            describe(text, sizeof text, "virtiofsd", status);
            write_state("lost %s", text);
            kill(qemu_pid, SIGKILL);
            exit(255);
        }
    }
}

static void take_signals(void) {
    struct signalfd_siginfo information;
    while (read(signal_fd, &information, sizeof information) == (ssize_t)sizeof information) {
        if (information.ssi_signo == SIGCHLD)
            reap();
        else if (information.ssi_signo == SIGWINCH && isatty(0))
            send_size();
        else if (information.ssi_signo == SIGTERM && !is_started)
            ended(SIGTERM, 0);
        else if (has_program)
            send_number(SIGNAL, information.ssi_signo);
        else if (information.ssi_signo == SIGTERM)
            send_frame(POWER_OFF, NULL, 0);
    }
}

static _Noreturn void serve(void) {
    for (;;) {
        struct pollfd watched[] = {
            {.fd = signal_fd, .events = POLLIN},
            {.fd = main_fd, .events = (short)(POLLIN | (outgoing_bytes ? POLLOUT : 0))},
            {.fd = console_fd, .events = POLLIN},
            {.fd = errors_fd, .events = POLLIN},
            {.fd = is_input_open && input_credit && !outgoing_bytes ? 0 : -1, .events = POLLIN},
            {.fd = output.bytes ? 1 : -1, .events = POLLOUT},
            {.fd = errors.bytes ? 2 : -1, .events = POLLOUT},
        };
        /* A socket whose other end is gone would not let us wait; the end of QEMU is told by a signal. */
        if (poll(watched, sizeof watched / sizeof *watched, -1) < 0)
            continue;
        if (watched[2].revents)
            keep_console();
        if (watched[3].revents && errors_fd >= 0)
            keep_errors();
        if (watched[1].revents) {
            send_up(NULL, 0);
            listen_to_guest();
        }
        if (watched[4].revents)
            take_input();
        give(&output);
        give(&errors);
        if (watched[0].revents)
            take_signals();
    }
}

static void prepare_streams(int has_input) {
    struct termios raw;
    if (!tcgetattr(0, &raw)) { /* the guest has the terminal that counts */
        cfmakeraw(&raw);
        tcsetattr(0, TCSANOW, &raw);
    }
    is_input_open = has_input;
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    fcntl(1, F_SETFL, fcntl(1, F_GETFL) | O_NONBLOCK);
    fcntl(2, F_SETFL, fcntl(2, F_GETFL) | O_NONBLOCK);
}

static int run(void) {
    sigset_t all;
    int has_input = 0;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    signal_fd = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
    read_plan();
    write_state("booting");
    for (size_t at = 0; at < word_count && strcmp(words[at], "qemu"); at++) {
        has_program |= !strcmp(words[at], "program");
        has_input |= !strcmp(words[at], "input");
        nic_count += !strcmp(words[at], "tap");
    }
    prepare_streams(has_input);
    open_console_log(0);
    start_all();
    serve();
}

int main(int count, char **words_given) {
    int error = EINVAL;
    if (count == 2 && !strcmp(words_given[1], "run"))
        return run();
    if (count == 5 && !strcmp(words_given[1], "tap"))
        error = make_tap(words_given[2], words_given[3], (uid_t)strtoul(words_given[4], NULL, 10));
    if (count == 3 && !strcmp(words_given[1], "untap"))
        error = remove_tap(words_given[2]);
    if (error)
        dprintf(2, "%s\n", strerror(error));
    return error ? 1 : 0;
}
