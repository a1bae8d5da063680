/* Compares a bundle with its manifest: exactly the listed files, each with the listed content. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"

static qc_status check_entry(const char *bundle, const char *name, const manifest *m);

/* Refuses what the manifest does not list; folder is relative to the bundle, "" for itself. */
static qc_status check_folder(const char *bundle, const char *folder, const manifest *m) {
  char *path = join_path(bundle, folder);
  if (!path) return out_of_memory();
  DIR *entries = opendir(path);
  if (!entries) {
    qc_status status = fail(QC_ERROR_BUNDLE, "folder %s cannot be read: %s", path, strerror(errno));
    free(path);
    return status;
  }
  free(path);
  qc_status status = QC_OK;
  for (struct dirent *entry; status == QC_OK && (entry = readdir(entries));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    char *name = *folder ? join_path(folder, entry->d_name) : strdup(entry->d_name);
    status = name ? check_entry(bundle, name, m) : out_of_memory();
    free(name);
  }
  closedir(entries);
  return status;
}

static qc_status check_entry(const char *bundle, const char *name, const manifest *m) {
  if (manifest_file(m, name) || !strcmp(name, MANIFEST_TEXT) || !strcmp(name, SIGNATURE)) return QC_OK;
  char *path = join_path(bundle, name);
  if (!path) return out_of_memory();
  struct stat info;
  bool folder = lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
  free(path);
  if (folder) return check_folder(bundle, name, m);
  return fail(QC_ERROR_BUNDLE, "bundle %s has a file that its manifest does not list: %s; remove it", bundle, name);
}

/* Hashing is most of the time of a load, so several threads take files from one list. */
typedef struct {
  const char *bundle;
  const manifest *m;
  _Atomic size_t next;
  size_t *order;        /* of the files, the largest first */
  char (*found)[DIGEST_HEX + 1];
  qc_status *status;
  char (*errors)[256];  /* error texts belong to threads */
} hashing;

static void *hash_files(void *argument) {
  hashing *work = argument;
  for (size_t turn; (turn = work->next++) < work->m->file_count;) {
    const size_t i = work->order[turn];
    char *path = join_path(work->bundle, work->m->files[i].path);
    work->status[i] = path ? hash_file(path, work->found[i]) : out_of_memory();
    if (work->status[i] != QC_OK) snprintf(work->errors[i], sizeof *work->errors, "%s", qc_error());
    free(path);
  }
  return NULL;
}

static qc_status compare(const hashing *work) {
  for (size_t i = 0; i < work->m->file_count; ++i) {
    if (work->status[i] != QC_OK) return fail(work->status[i], "%s", work->errors[i]);
    if (strcmp(work->found[i], work->m->files[i].digest))
      return fail(QC_ERROR_BUNDLE,
                  "bundle %s: %s is damaged (its SHA-256 is not the manifest's); copy the bundle again, or compile the "
                  "model again",
                  work->bundle, work->m->files[i].path);
  }
  return QC_OK;
}

static qc_status check_digests(const char *bundle, const manifest *m, const off_t *sizes) {
  enum { MOST_HASHERS = 4 }; /* a bundle has no more than three or four large files */
  const size_t count = m->file_count;
  hashing work = {bundle, m, 0, malloc(count * sizeof *work.order), malloc(count * sizeof *work.found),
                  calloc(count, sizeof *work.status), malloc(count * sizeof *work.errors)};
  qc_status status = work.order && work.found && work.status && work.errors ? QC_OK : out_of_memory();
  if (status == QC_OK) {
    for (size_t i = 0; i < count; ++i) {
      size_t at = i;
      for (; at && sizes[work.order[at - 1]] < sizes[i]; --at) work.order[at] = work.order[at - 1];
      work.order[at] = i;
    }
    pthread_t helpers[MOST_HASHERS - 1];
    int wanted = available_cpus(NULL, 0) - 1, started = 0;
    if (wanted > MOST_HASHERS - 1) wanted = MOST_HASHERS - 1;
    /* Fewer helpers than wanted only take longer. */
    while (started < wanted && pthread_create(&helpers[started], NULL, hash_files, &work) == 0) ++started;
    hash_files(&work);
    while (started > 0) pthread_join(helpers[--started], NULL);
    status = compare(&work);
  }
  free(work.order);
  free(work.found);
  free(work.status);
  free(work.errors);
  return status;
}

static qc_status check_presence(const char *bundle, const manifest *m, off_t *sizes) {
  for (size_t i = 0; i < m->file_count; ++i) {
    char *path = join_path(bundle, m->files[i].path);
    if (!path) return out_of_memory();
    struct stat info;
    bool there = stat(path, &info) == 0 && S_ISREG(info.st_mode);
    free(path);
    if (!there)
      return fail(QC_ERROR_BUNDLE, "bundle %s lacks %s; copy it again, or compile the model again", bundle,
                  m->files[i].path);
    sizes[i] = info.st_size;
  }
  return QC_OK;
}

qc_status check_bundle(const char *bundle, const manifest *m) {
  static const char *const required[] = {LIBRARY, TVM_RUNTIME, TVM_FFI, "manifest.json"};
  static const char *const of_gpus[] = {CUDART, TVM_RUNTIME_CUDA};
  for (size_t i = 0; i < sizeof required / sizeof *required; ++i)
    if (!manifest_file(m, required[i]))
      return fail(QC_ERROR_BUNDLE, "bundle %s: its manifest lists no %s; compile the model again", bundle, required[i]);
  for (size_t i = 0; m->capability && i < sizeof of_gpus / sizeof *of_gpus; ++i)
    if (!manifest_file(m, of_gpus[i]))
      return fail(QC_ERROR_BUNDLE, "bundle %s: its manifest lists no %s; compile the model again", bundle, of_gpus[i]);
  if (m->constant_count && !manifest_file(m, CONSTANTS))
    return fail(QC_ERROR_BUNDLE, "bundle %s: its manifest lists no " CONSTANTS "; compile the model again", bundle);
  off_t *sizes = calloc(m->file_count, sizeof *sizes);
  qc_status status = sizes ? check_presence(bundle, m, sizes) : out_of_memory();
  if (status == QC_OK) status = check_folder(bundle, "", m);
  if (status == QC_OK) status = check_digests(bundle, m, sizes);
  free(sizes);
  return status;
}
