/* Runs a model on files of raw numbers, and prints what comes out.
 *
 *     run BUNDLE [-o OUTPUT_FILE] [INPUT_FILE ...]
 *
 * An input without a file is all zeros. OUTPUT_FILE gets the bytes of all outputs, one after the other.
 */
#include <qc_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(qc_status status) {
  if (status == QC_OK) return;
  fprintf(stderr, "error: %s: %s\n", qc_status_text(status), qc_error());
  exit(1);
}

static void print(const char *kind, const qc_tensor_info *info) {
  printf("%s %s: %s[", kind, info->name, info->dtype);
  for (size_t d = 0; d < info->ndim; ++d) printf("%s%lld", d ? ", " : "", (long long)info->shape[d]);
  printf("], %zu bytes\n", info->size);
}

/* Memory at a multiple of 64 bytes is read in place. */
static qc_buffer allocate(size_t size) {
  qc_buffer buffer = {aligned_alloc(64, (size / 64 + 1) * 64), size};
  if (!buffer.data) exit(1);
  memset(buffer.data, 0, size);
  return buffer;
}

int main(int argc, char **argv) {
  const char *output_file = NULL;
  int next = 2;
  if (argc > 3 && !strcmp(argv[2], "-o")) output_file = argv[3], next = 4;
  if (argc < 2) {
    fprintf(stderr, "usage: %s BUNDLE [-o OUTPUT_FILE] [INPUT_FILE ...]\n", argv[0]);
    return 2;
  }

  qc_model *model;
  check(qc_load(argv[1], &model));
  const size_t input_count = qc_input_count(model), output_count = qc_output_count(model);
  qc_buffer *inputs = calloc(input_count + 1, sizeof *inputs), *outputs = calloc(output_count + 1, sizeof *outputs);
  if (!inputs || !outputs) return 1;
  qc_tensor_info info;

  for (size_t i = 0; i < input_count; ++i, ++next) {
    check(qc_input_info(model, i, &info));
    print("input", &info);
    inputs[i] = allocate(info.size);
    if (next >= argc) continue;
    FILE *file = fopen(argv[next], "rb");
    if (!file || fread(inputs[i].data, 1, info.size, file) != info.size) {
      fprintf(stderr, "error: %s has not the %zu bytes of input %s\n", argv[next], info.size, info.name);
      return 1;
    }
    fclose(file);
  }
  for (size_t i = 0; i < output_count; ++i) {
    check(qc_output_info(model, i, &info));
    outputs[i] = allocate(info.size);
  }

  check(qc_run(model, inputs, input_count, outputs, output_count));

  FILE *file = output_file ? fopen(output_file, "wb") : NULL;
  for (size_t i = 0; i < output_count; ++i) {
    check(qc_output_info(model, i, &info));
    print("output", &info);
    if (!strcmp(info.dtype, "float32")) {
      for (size_t k = 0; k < 8 && k < info.size / sizeof(float); ++k) printf("%g ", ((float *)outputs[i].data)[k]);
      printf("\n");
    }
    if (output_file && (!file || fwrite(outputs[i].data, 1, info.size, file) != info.size)) {
      fprintf(stderr, "error: %s cannot be written\n", output_file);
      return 1;
    }
    free(outputs[i].data);
  }
  if (file) fclose(file);
  for (size_t i = 0; i < input_count; ++i) free(inputs[i].data);
  free(inputs);
  free(outputs);
  qc_free(model);
  return 0;
}
