/* Preloaded into a process: the n-th write, fsync or rename below a directory fails. See system.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4 };

static int kinds, at, code, lasts, seen;
static char root[PATH_MAX];

/* Let the n-th call (from 0) of the given kinds fail with `error`; with `forever`, all later ones too. */
void fault_arm(int which, int n, int error, int forever, const char *directory) {
    strncpy(root, directory, sizeof root - 1);
    at = n, code = error, lasts = forever, seen = 0, kinds = which;
}

/* Return the number of calls seen, and stop. */
int fault_disarm(void) {
    kinds = 0;
    return seen;
}

static int fails(int kind, const char *path) {
    if (!(kinds & kind) || strncmp(path, root, strlen(root))) return 0;
    int number = seen++;
    if (number != at && !(lasts && number > at)) return 0;
    errno = code;
    return 1;
}

static int fails_on(int kind, int fd) {
    char link[64], path[PATH_MAX];
    if (!(kinds & kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return fails_on(WRITE, fd) ? -1 : real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return fails_on(WRITE, fd) ? -1 : real(fd, parts, count);
}

/* While armed, nothing is synced: the tests end processes, not the machine, and syncing takes most of their time. */
int fsync(int fd) {
    REAL(fsync);
    if (!kinds) return real(fd);
    return fails_on(SYNC, fd) ? -1 : 0;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(RENAME, to) ? -1 : real(from, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    return fails(RENAME, to) ? -1 : real(from, to);
}
