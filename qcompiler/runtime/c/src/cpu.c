/* What this CPU can do, as the kernel tells, and whether it can run a bundle. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "internal.h"

#define CPUINFO "/proc/cpuinfo"

#if defined(__x86_64__)
#define FAMILY "x86"
#define GPU_FAMILY "cuda"
#define FLAGS "flags"
#elif defined(__aarch64__)
#define FAMILY "arm"
#define GPU_FAMILY "unknown"
#define FLAGS "Features"
#else
#define FAMILY "unknown"
#define GPU_FAMILY "unknown"
#define FLAGS "flags"
#endif

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

/* On this architecture the kernel gives each process the features as bits, which emulators give, too. */
static const struct {
  const char *name; /* as in /proc/cpuinfo */
  unsigned long type, bit;
} kernel_features[] = {
    {"fp", AT_HWCAP, HWCAP_FP},           {"asimd", AT_HWCAP, HWCAP_ASIMD},       {"atomics", AT_HWCAP, HWCAP_ATOMICS},
    {"fphp", AT_HWCAP, HWCAP_FPHP},       {"asimdhp", AT_HWCAP, HWCAP_ASIMDHP},   {"asimdrdm", AT_HWCAP, HWCAP_ASIMDRDM},
    {"lrcpc", AT_HWCAP, HWCAP_LRCPC},     {"asimddp", AT_HWCAP, HWCAP_ASIMDDP},   {"fcma", AT_HWCAP, HWCAP_FCMA},
    {"uscat", AT_HWCAP, HWCAP_USCAT},     {"asimdfhm", AT_HWCAP, HWCAP_ASIMDFHM}, {"ilrcpc", AT_HWCAP, HWCAP_ILRCPC},
    {"flagm", AT_HWCAP, HWCAP_FLAGM},     {"sha3", AT_HWCAP, HWCAP_SHA3},         {"sve", AT_HWCAP, HWCAP_SVE},
    {"flagm2", AT_HWCAP2, HWCAP2_FLAGM2}, {"i8mm", AT_HWCAP2, HWCAP2_I8MM},       {"bf16", AT_HWCAP2, HWCAP2_BF16},
    {"sve2", AT_HWCAP2, HWCAP2_SVE2},
};

static bool kernel_has(const char *feature) {
  for (size_t i = 0; i < sizeof kernel_features / sizeof *kernel_features; ++i)
    if (!strcmp(feature, kernel_features[i].name))
      return getauxval(kernel_features[i].type) & kernel_features[i].bit;
  return false;
}
#else
static bool kernel_has(const char *feature) { return (void)feature, false; }
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

/* Clears a flag of each feature that some core lacks; keeps the first core's name. What no list has is not there, but
 * for what the kernel itself says. */
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
  for (size_t t = 0; t < count; ++t)
    for (size_t f = 0; f < needs[t].feature_count; ++f)
      present[t][f] = (listed && present[t][f]) || kernel_has(needs[t].features[f]);
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
  if (strcmp(m->family, FAMILY) && strcmp(m->family, GPU_FAMILY))
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
