/* Loads a bundle and runs it twice on ones; prints milliseconds and the peak of memory as JSON. For startup.py. */
#include <qc_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static void check(qc_status status) {
  if (status == QC_OK) return;
  fprintf(stderr, "%s\n", qc_error());
  exit(1);
}

static qc_buffer allocate(const qc_tensor_info *info) {
  qc_buffer buffer = {aligned_alloc(64, (info->size / 64 + 1) * 64), info->size};
  if (!buffer.data) exit(1);
  for (size_t k = 0; k < info->size / sizeof(float); ++k) ((float *)buffer.data)[k] = 1;
  return buffer;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const double start = milliseconds();
  qc_model *model;
  check(qc_load(argv[1], &model));
  const double loaded = milliseconds();
  check(qc_set_threads(model, atoi(argv[2])));
  qc_tensor_info info;
  qc_buffer inputs[16], outputs[16];
  const size_t input_count = qc_input_count(model), output_count = qc_output_count(model);
  if (input_count > 16 || output_count > 16) return 2;
  for (size_t i = 0; i < input_count; ++i) {
    check(qc_input_info(model, i, &info));
    inputs[i] = allocate(&info);
  }
  for (size_t i = 0; i < output_count; ++i) {
    check(qc_output_info(model, i, &info));
    outputs[i] = allocate(&info);
  }
  const double ready = milliseconds();
  check(qc_run(model, inputs, input_count, outputs, output_count));
  const double first = milliseconds();
  check(qc_run(model, inputs, input_count, outputs, output_count));
  const double second = milliseconds();
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("{\"import\": 0, \"load\": %.3f, \"first\": %.3f, \"second\": %.3f, \"peak\": %ld}\n", loaded - start,
         first - ready, second - first, usage.ru_maxrss);
  return 0;
}
