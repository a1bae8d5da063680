/* Compares a bundle with its manifest: exactly the listed files, each with the listed content. */
#include <dirent.h>
#include <errno.h>
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

static qc_status check_file(const char *bundle, const file_entry *file) {
  char *path = join_path(bundle, file->path);
  if (!path) return out_of_memory();
  char hex[DIGEST_HEX + 1];
  qc_status status = hash_file(path, hex);
  free(path);
  TRY(status);
  if (strcmp(hex, file->digest))
    return fail(QC_ERROR_BUNDLE,
                "bundle %s: %s is damaged (its SHA-256 is not the manifest's); copy the bundle again, or compile the "
                "model again",
                bundle, file->path);
  return QC_OK;
}

qc_status check_bundle(const char *bundle, const manifest *m) {
  static const char *const required[] = {LIBRARY, TVM_RUNTIME, TVM_FFI, "manifest.json"};
  for (size_t i = 0; i < sizeof required / sizeof *required; ++i)
    if (!manifest_file(m, required[i]))
      return fail(QC_ERROR_BUNDLE, "bundle %s: its manifest lists no %s; compile the model again", bundle, required[i]);
  if (m->constant_count && !manifest_file(m, CONSTANTS))
    return fail(QC_ERROR_BUNDLE, "bundle %s: its manifest lists no " CONSTANTS "; compile the model again", bundle);
  for (size_t i = 0; i < m->file_count; ++i) {
    char *path = join_path(bundle, m->files[i].path);
    if (!path) return out_of_memory();
    struct stat info;
    bool there = stat(path, &info) == 0 && S_ISREG(info.st_mode);
    free(path);
    if (!there)
      return fail(QC_ERROR_BUNDLE, "bundle %s lacks %s; copy it again, or compile the model again", bundle,
                  m->files[i].path);
  }
  TRY(check_folder(bundle, "", m));
  for (size_t i = 0; i < m->file_count; ++i) TRY(check_file(bundle, &m->files[i]));
  return QC_OK;
}
