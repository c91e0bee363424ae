/*
 * The testbed's users in files of a disk that has users of its own: passwd(5), group(5), shadow(5), gshadow(5), sudoers(5). A user of the
 * testbed has the numbers that the node says; a group that the disk has already keeps its own.
 */
#ifndef NESTBED_ACCOUNTS_H
#define NESTBED_ACCOUNTS_H

static char *whole_file(const char *path) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status)) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    char *text = must(malloc((size_t)status.st_size + 1));
    ssize_t length = read(fd, text, (size_t)status.st_size);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    return text;
}

/* The line of `text` that begins with `name` and then `end`; NULL if there is none. */
static char *find_line(char *text, const char *name, char end) {
    size_t length = strlen(name);
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, name, length) && line[length] == end)
            return line;
    return NULL;
}

/* Have the file hold `line` in place of the one that begins with `name` and `end`, or at its end. 0 or an errno. */
static int set_line(const char *path, const char *name, char end, const char *line, mode_t mode) {
    char new_path[256], *text = whole_file(path), *old = text ? find_line(text, name, end) : NULL;
    struct stat status = {.st_mode = mode};
    stat(path, &status);
    snprintf(new_path, sizeof new_path, "%s.nestbed", path);
    int fd = open(new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, status.st_mode & 07777), error = fd < 0 ? errno : 0;
    const char *rest = old ? strchr(old, '\n') : NULL;
    size_t before = old ? (size_t)(old - text) : text ? strlen(text) : 0;
    int needs_end = before && text[before - 1] != '\n';
    if (!error && dprintf(fd, "%.*s%s%s%s", (int)before, text ? text : "", needs_end ? "\n" : "", line, rest ? rest : "\n") < 0)
        error = errno;
    if (!error && (fchown(fd, status.st_uid, status.st_gid) || fchmod(fd, status.st_mode & 07777) || rename(new_path, path)))
        error = errno;
    if (fd >= 0)
        close(fd);
    free(text);
    return error;
}

static int has_line(const char *path, const char *name) {
    char *text = whole_file(path);
    int found = text && find_line(text, name, ':');
    free(text);
    return found;
}

/* Words: name, number, names of its members with commas between them. */
static int set_group(const char *name, const char *number, char *members) {
    static char line[65536];
    char *text = whole_file("/etc/group"), *old = text ? find_line(text, name, ':') : NULL, *member;
    int error = 0;
    if (old) {
        old[strcspn(old, "\n")] = 0;
        snprintf(line, sizeof line, "%s", old);
    } else {
        snprintf(line, sizeof line, "%s:x:%s:", name, number);
    }
    char *list = strrchr(line, ':') + 1;
    while ((member = strsep(&members, ","))) {
        size_t length = strlen(member), used = strlen(line);
        int is_there = !length;
        for (char *at = list; *at && !is_there; at += strcspn(at, ","), at += *at == ',')
            is_there = strcspn(at, ",") == length && !strncmp(at, member, length);
        if (!is_there)
            snprintf(line + used, sizeof line - used, "%s%s", *list ? "," : "", member);
    }
    error = set_line("/etc/group", name, ':', line, 0644);
    if (!error && !old && !access("/etc/gshadow", F_OK)) {
        snprintf(line, sizeof line, "%s:!::", name);
        error = set_line("/etc/gshadow", name, ':', line, 0640);
    }
    free(text);
    return error;
}

static int put_key(const char *home, const char *keys, uid_t uid, gid_t gid) {
    char path[512];
    snprintf(path, sizeof path, "%s/.ssh", home);
    if (!mkdir(path, 0700) && chown(path, uid, gid))
        return errno;
    snprintf(path, sizeof path, "%s/.ssh/authorized_keys", home);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return errno == EEXIST ? 0 : errno;
    int error = write(fd, keys, strlen(keys)) < 0 || fchown(fd, uid, gid) ? errno : 0;
    close(fd);
    return error;
}

/* Words: name, uid, gid, who it is, home, shell, "sudo" or "", the lines of its authorized_keys. */
static int set_account(char **word) {
    const char *name = word[0], *home = word[4], *keys = word[7];
    uid_t uid = (uid_t)strtoul(word[1], NULL, 10);
    gid_t gid = (gid_t)strtoul(word[2], NULL, 10);
    char line[1024], path[512];
    int error;
    snprintf(line, sizeof line, "%s:x:%s:%s:%s:%s:%s", name, word[1], word[2], word[3], home, access(word[5], X_OK) ? "/bin/sh" : word[5]);
    if ((error = set_line("/etc/passwd", name, ':', line, 0644)))
        return error;
    if (!has_line("/etc/shadow", name)) {
        snprintf(line, sizeof line, "%s:*:19000:0:99999:7:::", name);
        if ((error = set_line("/etc/shadow", name, ':', line, 0640)))
            return error;
    }
    if (*word[6] && !access("/etc/sudoers.d", F_OK)) {
        snprintf(line, sizeof line, "%s ALL=(ALL:ALL) NOPASSWD: ALL", name);
        if ((error = set_line("/etc/sudoers.d/nestbed", name, ' ', line, 0440)))
            return error;
    }
    if (access(home, F_OK)) {
        snprintf(path, sizeof path, "%s", home);
        make_directories(path);
        if (chown(home, uid, gid) || chmod(home, 0755))
            return errno;
    }
    return *keys ? put_key(home, keys, uid, gid) : 0;
}

/* The words of a frame, which end with 0 each; 0 if they are fewer than wanted. */
static int split_words(char *text, uint32_t length, char **words, size_t wanted) {
    char *at = text;
    for (size_t number = 0; number < wanted; number++) {
        if (at >= text + length)
            return 0;
        words[number] = at;
        at += strlen(at) + 1;
    }
    return 1;
}

static void take_account(struct port *port, const struct frame *frame) {
    char *text = text_of(frame), *words[8];
    size_t wanted = frame->type == ACCOUNT ? 8 : 3;
    int error = EINVAL;
    if (split_words(text, frame->length, words, wanted))
        error = frame->type == ACCOUNT ? set_account(words) : set_group(words[0], words[1], words[2]);
    answer(port, frame->channel, error, frame->type == ACCOUNT ? "account" : "group");
    free(text);
}

#endif
