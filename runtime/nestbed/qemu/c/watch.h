/*
 * `agent watch DIRECTORY PID`: for a shell in the guest that wants to know when to look into a directory. To start a program each second
 * for that takes all the time of a machine that is emulated twice.
 */
#ifndef NESTBED_WATCH_H
#define NESTBED_WATCH_H

#include <sys/inotify.h>

enum { LOOK_ANYWAY_MS = 10000 };

/* A line at once, whenever a file is there that was written or moved, and now and then; until the process ends, or nobody reads. */
static int watch(const char *directory, pid_t pid) {
    char changes[65536];
    int fd = inotify_init1(IN_CLOEXEC), life = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 || life < 0 || inotify_add_watch(fd, directory, IN_CLOSE_WRITE | IN_MOVED_TO | IN_ONLYDIR) < 0) {
        perror(directory);
        return 1;
    }
    struct pollfd watched[] = {{.fd = fd, .events = POLLIN}, {.fd = life, .events = POLLIN}};
    while (!watched[1].revents && write(1, "\n", 1) == 1 && poll(watched, 2, LOOK_ANYWAY_MS) >= 0)
        if (watched[0].revents && read(fd, changes, sizeof changes) < 0)
            break;
    return 0;
}

#endif
