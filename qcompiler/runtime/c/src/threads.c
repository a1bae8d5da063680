/* How many threads a model runs on if nobody says. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MOST_CPUS 8192 /* the most that Linux can be built for */

int available_cpus(int *numbers, int capacity) {
  cpu_set_t *set = CPU_ALLOC(MOST_CPUS);
  const size_t size = CPU_ALLOC_SIZE(MOST_CPUS);
  if (!set) return 0;
  int count = 0;
  if (sched_getaffinity(0, size, set) == 0)
    for (int cpu = 0; cpu < MOST_CPUS; ++cpu)
      if (CPU_ISSET_S((size_t)cpu, size, set)) {
        if (count < capacity) numbers[count] = cpu;
        ++count;
      }
  CPU_FREE(set);
  return count;
}

/* The first line of a file without its end, or false. */
static bool read_line(const char *path, char *line, int size) {
  FILE *file = fopen(path, "re");
  if (!file) return false;
  bool there = fgets(line, size, file) != NULL;
  fclose(file);
  if (there) line[strcspn(line, "\n")] = '\0';
  return there;
}

/* Two threads of one core share its multipliers, so the second adds nothing to integer kernels. A core is counted at
 * the first of its CPUs that this process may use; a CPU of unknown topology is a core of its own. */
static int physical_cores(const int *cpus, int count) {
  int cores = 0;
  for (int i = 0; i < count; ++i) {
    char path[96], siblings[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpus[i]);
    bool counted = false;
    if (read_line(path, siblings, sizeof siblings))
      for (int earlier = 0; earlier < i && !counted; ++earlier) {
        for (const char *at = siblings; *at && !counted;) { /* as 0-1,8 */
          char *end;
          long first = strtol(at, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
          counted = cpus[earlier] >= first && cpus[earlier] <= last;
          if (end == at) break;
          at = *end ? end + 1 : end;
        }
      }
    cores += !counted;
  }
  return cores;
}

/* CPUs' worth of time that the control group grants, rounded down, at least 1; a huge number for no limit. */
static long quota(void) {
  char line[96];
  double granted, period;
  const long unlimited = MOST_CPUS;
  if (read_line("/sys/fs/cgroup/cpu.max", line, sizeof line)) {
    char *end;
    granted = (double)strtoll(line, &end, 10); /* "max" gives no number */
    period = (double)strtoll(end, NULL, 10);
    if (end == line) return unlimited;
  } else {
    if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line, sizeof line)) return unlimited;
    granted = (double)strtoll(line, NULL, 10);
    if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line, sizeof line)) return unlimited;
    period = (double)strtoll(line, NULL, 10);
  }
  if (granted <= 0 || period <= 0) return unlimited;
  return granted < period ? 1 : (long)(granted / period);
}

int default_threads(void) {
  int *cpus = malloc(MOST_CPUS * sizeof *cpus);
  if (!cpus) return 1;
  int cores = physical_cores(cpus, available_cpus(cpus, MOST_CPUS));
  free(cpus);
  long limit = quota();
  if (cores < 1) return 1;
  return cores < limit ? cores : (int)limit;
}
