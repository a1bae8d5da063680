/* What this CPU can do, read from /proc/cpuinfo, and whether it can run a bundle. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "internal.h"

#define CPUINFO "/proc/cpuinfo"

#if defined(__x86_64__)
#define FAMILY "x86"
#define FLAGS "flags"
#elif defined(__aarch64__)
#define FAMILY "arm"
#define FLAGS "Features"
#else
#define FAMILY "unknown"
#define FLAGS "flags"
#endif

static bool has_word(const char *text, const char *word) {
  size_t length = strlen(word);
  for (const char *at = text; (at = strstr(at, word)); at += length)
    if ((at == text || isspace((unsigned char)at[-1])) && (!at[length] || isspace((unsigned char)at[length])))
      return true;
  return false;
}

/* The value of a line "key : value" of cpuinfo, or NULL. */
static const char *value_of(const char *line, const char *key) {
  size_t length = strlen(key);
  if (strncmp(line, key, length)) return NULL;
  line += length + strspn(line + length, " \t");
  return *line == ':' ? line + 1 + strspn(line + 1, " \t") : NULL;
}

/* Clears a flag of each feature that some core lacks; keeps the first core's name. Without a list, none is there. */
static qc_status read_cpuinfo(const target_needs *needs, size_t count, bool **present, char *name, size_t name_size) {
  FILE *file = fopen(CPUINFO, "re");
  if (!file) return fail(QC_ERROR_CPU, CPUINFO " cannot be read: %s", strerror(errno));
  bool listed = false;
  char *line = NULL;
  size_t capacity = 0;
  while (getline(&line, &capacity, file) > 0) {
    line[strcspn(line, "\n")] = '\0';
    const char *model = value_of(line, "model name"), *flags = value_of(line, FLAGS);
    if (model && !*name) snprintf(name, name_size, "%s", model);
    if (!flags) continue;
    listed = true;
    for (size_t t = 0; t < count; ++t)
      for (size_t f = 0; f < needs[t].feature_count; ++f)
        if (present[t][f] && !has_word(flags, needs[t].features[f])) present[t][f] = false;
  }
  free(line);
  fclose(file);
  for (size_t t = 0; t < count && !listed; ++t) memset(present[t], 0, needs[t].feature_count);
  return QC_OK;
}

static bool all(const bool *present, size_t count) { return count == 0 || !memchr(present, false, count); }

static qc_status refuse(const manifest *m, bool **present, const char *cpu) {
  char missing[512] = "", advice[256] = "see 'qcompile targets' for other targets";
  size_t used = 0;
  for (size_t f = 0; f < m->target.feature_count && used < sizeof missing; ++f)
    if (!present[0][f])
      used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%s", used ? ", " : "", m->target.features[f]);
  for (size_t t = m->alternative_count; t > 0; --t) /* the first that this CPU can run is written last */
    if (all(present[t], m->alternatives[t - 1].feature_count))
      snprintf(advice, sizeof advice, "compile the model with --target %s", m->alternatives[t - 1].name);
  return fail(QC_ERROR_CPU, "bundle for target %s needs CPU features that %s lacks: %s; %s", m->target.name, cpu,
              missing, advice);
}

qc_status check_cpu(const manifest *m) {
  struct utsname machine;
  uname(&machine);
  if (strcmp(m->family, FAMILY))
    return fail(QC_ERROR_CPU,
                "bundle is for %s Linux (target %s); this machine is %s; compile the model for a target of this machine",
                m->family, m->target.name, machine.machine);
  const size_t count = 1 + m->alternative_count;
  target_needs *needs = calloc(count, sizeof *needs);
  bool **present = calloc(count, sizeof *present);
  bool enough = needs && present;
  for (size_t t = 0; enough && t < count; ++t) {
    needs[t] = t ? m->alternatives[t - 1] : m->target;
    present[t] = malloc(needs[t].feature_count + 1);
    enough = present[t] != NULL;
    if (enough) memset(present[t], true, needs[t].feature_count + 1);
  }
  char cpu[256] = "";
  qc_status status = enough ? read_cpuinfo(needs, count, present, cpu, sizeof cpu) : out_of_memory();
  if (status == QC_OK && !all(present[0], m->target.feature_count))
    status = refuse(m, present, *cpu ? cpu : machine.machine);
  for (size_t t = 0; present && t < count; ++t) free(present[t]);
  free(present);
  free(needs);
  return status;
}
