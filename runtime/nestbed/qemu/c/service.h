/*
 * The agent on a disk that has an init of its own: it runs as a service of that, from memory, so that nothing of nestbed is on the disk and
 * its version is always the node's. What calls install() is the initial file system, or cloud-init (nestbed/qemu/seed.py).
 */
#ifndef NESTBED_SERVICE_H
#define NESTBED_SERVICE_H

static const char service_unit[] = "[Unit]\n"
                                   "Description=nestbed's agent\n"
                                   "[Service]\n"
                                   "ExecStart=/run/nestbed-agent/agent serve\n"
                                   "KillMode=process\n"
                                   "Delegate=yes\n"
                                   "TasksMax=infinity\n";

/* Interfaces have the names that the node gives them; udev leaves them alone (systemd.link(5)). */
static const char service_link[] = "[Match]\n"
                                   "OriginalName=*\n"
                                   "[Link]\n"
                                   "NamePolicy=\n";

static void put_file(int fd, const void *content, size_t length, const char *path) {
    if (fd < 0 || write(fd, content, length) != (ssize_t)length)
        give_up(path);
    close(fd);
}

/* Below `run`, which becomes /run. */
static void install(const char *run) {
    static const char *const folders[] = {"", "/systemd", "/systemd/system", "/systemd/system/multi-user.target.wants",
                                          "/systemd/network"};
    char path[256], data[65536];
    ssize_t length;
    for (size_t number = 0; number < sizeof folders / sizeof *folders; number++) {
        snprintf(path, sizeof path, "%s%s", run, folders[number]);
        mkdir(path, 0755);
    }
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
    snprintf(path, sizeof path, "%s/systemd/system/nestbed-agent.service", run);
    put_file(open(path, flags, 0644), service_unit, sizeof service_unit - 1, path);
    snprintf(path, sizeof path, "%s/systemd/network/00-nestbed.link", run);
    put_file(open(path, flags, 0644), service_link, sizeof service_link - 1, path);
    snprintf(path, sizeof path, "%s/systemd/system/multi-user.target.wants/nestbed-agent.service", run);
    if (symlink("../nestbed-agent.service", path) && errno != EEXIST)
        give_up(path);
    /* What a distribution mounts at /run may forbid to execute what is there. */
    snprintf(path, sizeof path, "%s/nestbed-agent", run);
    mount_or_give_up("nestbed", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=16m");
    snprintf(path, sizeof path, "%s/nestbed-agent/agent", run);
    int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = open(path, flags, 0755);
    while ((length = read(from, data, sizeof data)) > 0)
        if (write(to, data, (size_t)length) != length)
            give_up(path);
    if (from < 0 || to < 0 || length < 0)
        give_up(path);
    close(from);
    close(to);
}

/* Become the init of the file system on a disk. */
static _Noreturn void hand_over(const char *device) {
    static const char *const moved[] = {"dev", "proc", "sys"};
    char text[8192];
    sigset_t none;
    while (access(device, F_OK))
        if (recv(uevent_fd, text, sizeof text, 0) < 0 && errno != ENOBUFS)
            give_up("waiting for the disk");
    mount_or_give_up(device, "/root", "ext4", 0, NULL);
    mount_or_give_up("run", "/root/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    install("/root/run");
    if (chdir("/root"))
        give_up("root");
    for (size_t number = 0; number < sizeof moved / sizeof *moved; number++) {
        snprintf(text, sizeof text, "/%s", moved[number]);
        if (mount(text, moved[number], NULL, MS_MOVE, NULL))
            give_up(text);
    }
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        give_up("changing the root");
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    execl("/sbin/init", "/sbin/init", NULL);
    give_up("/sbin/init");
}

/* The init ends the machine in its order. */
static void ask_for_power_off(void) {
    pid_t pid = fork();
    if (pid == 0) {
        execl("/sbin/poweroff", "/sbin/poweroff", NULL);
        _exit(127);
    }
}

#endif
