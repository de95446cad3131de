// What a disk has of a store's files when the power goes: loaded before libc (LD_PRELOAD), it lets
// every write through, and puts it into `<file>.disk` as well once somebody syncs the file. With
// POWER_SYNCS=none in the environment it forgets to, as a disk does that lies.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A write that is not synced, or with no bytes the new length of a file.
struct write {
  struct write *next;
  off_t at;
  size_t length;
  char bytes[];
};

static struct file {
  char path[PATH_MAX];
  struct write *first, *last;
} files[16];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

// The file behind `fd`, if it is a database or a log.
static struct file *file_of(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return NULL;
  path[length] = 0;
  char *name = strrchr(path, '/');
  if (!name || (strcmp(name, "/store.db") && strcmp(name, "/store.db-wal") &&
                strcmp(name, "/store.db-journal")))
    return NULL;
  for (struct file *file = files; file < files + 16; file++) {
    if (!*file->path) strcpy(file->path, path);
    if (!strcmp(file->path, path)) return file;
  }
  abort();
}

static void keep(int fd, const void *bytes, size_t length, off_t at) {
  pthread_mutex_lock(&lock);
  struct file *file = file_of(fd);
  if (file) {
    struct write *write = malloc(sizeof *write + length);
    *write = (struct write){.at = at, .length = length};
    memcpy(write->bytes, bytes, length);
    if (file->last) file->last->next = write;
    else file->first = write;
    file->last = write;
  }
  pthread_mutex_unlock(&lock);
}

static void make_last(int fd) {
  const char *syncs = getenv("POWER_SYNCS");
  if (syncs && !strcmp(syncs, "none")) return;
  pthread_mutex_lock(&lock);
  struct file *file = file_of(fd);
  if (file && file->first) {
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s.disk", file->path);
    int disk = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (disk < 0) abort();
    while (file->first) {
      struct write *write = file->first;
      int done = write->length
                     ? REAL(pwrite64)(disk, write->bytes, write->length, write->at) ==
                           (ssize_t)write->length
                     : REAL(ftruncate64)(disk, write->at) == 0;
      if (!done) abort();
      file->first = write->next;
      free(write);
    }
    file->last = NULL;
    close(disk);
  }
  pthread_mutex_unlock(&lock);
}

ssize_t write(int fd, const void *bytes, size_t length) {
  off_t at = lseek(fd, 0, SEEK_CUR);
  ssize_t done = REAL(write)(fd, bytes, length);
  if (at >= 0 && done > 0) keep(fd, bytes, (size_t)done, at);
  return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
  ssize_t done = REAL(pwrite64)(fd, bytes, length, at);
  if (done > 0) keep(fd, bytes, (size_t)done, at);
  return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
  return pwrite64(fd, bytes, length, at);
}

int ftruncate64(int fd, off64_t length) {
  int failed = REAL(ftruncate64)(fd, length);
  if (!failed) keep(fd, "", 0, length);
  return failed;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fdatasync(int fd) {
  make_last(fd);
  return REAL(fdatasync)(fd);
}

int fsync(int fd) {
  make_last(fd);
  return REAL(fsync)(fd);
}
