/* Reads files. What is only hashed is not mapped: a mapped page counts as memory of the process. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

char *join_path(const char *folder, const char *name) {
  size_t size = strlen(folder) + strlen(name) + 2;
  char *path = malloc(size);
  if (path) snprintf(path, size, "%s/%s", folder, name);
  return path;
}

static ssize_t read_some(int file, void *data, size_t size) {
  ssize_t got;
  do got = read(file, data, size);
  while (got < 0 && errno == EINTR);
  return got;
}

static qc_status unreadable(const char *path) {
  return fail(QC_ERROR_BUNDLE, "%s cannot be read: %s; copy the bundle again", path, strerror(errno));
}

qc_status read_text(const char *path, size_t limit, char **text, size_t *size) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return unreadable(path);
  size_t capacity = 1 << 14, used = 0;
  char *data = malloc(capacity);
  ssize_t got = 0;
  while (data && (got = read_some(file, data + used, capacity - 1 - used)) > 0) {
    used += (size_t)got;
    if (used > limit) break;
    if (used == capacity - 1) {
      char *larger = realloc(data, capacity *= 2);
      if (!larger) free(data);
      data = larger;
    }
  }
  qc_status status = !data ? out_of_memory() : got < 0 ? unreadable(path) : QC_OK;
  if (status == QC_OK && used > limit)
    status = fail(QC_ERROR_BUNDLE, "%s has more than %zu bytes; it is damaged, copy the bundle again", path, limit);
  close(file);
  if (status != QC_OK) {
    free(data);
    return status;
  }
  data[used] = '\0';
  *text = data;
  *size = used;
  return QC_OK;
}

qc_status map_file(const char *path, void **data, size_t *size) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return unreadable(path);
  struct stat info;
  bool known = fstat(file, &info) == 0;
  *size = known ? (size_t)info.st_size : 0;
  *data = known ? mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  qc_status status = QC_OK;
  if (*data == MAP_FAILED) {
    status = unreadable(path);
    *data = NULL;
  }
  close(file);
  return status;
}

qc_status hash_file(const char *path, char hex[DIGEST_HEX + 1]) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return unreadable(path);
  const size_t step = 1 << 16; /* stays in the cache between the kernel's copy and the hash */
  uint8_t *data = malloc(step);
  sha256_context context;
  sha256_init(&context);
  ssize_t got = 0;
  while (data && (got = read_some(file, data, step)) > 0) sha256_update(&context, data, (size_t)got);
  qc_status status = !data ? out_of_memory() : got < 0 ? unreadable(path) : QC_OK;
  sha256_hex(&context, hex);
  free(data);
  close(file);
  return status;
}
