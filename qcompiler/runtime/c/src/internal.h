/* What the files of the runtime share; nothing of it is visible outside. */
#ifndef QC_INTERNAL_H
#define QC_INTERNAL_H

#include <dlpack/dlpack.h>
#include <stdbool.h>
#include <stdio.h>

#include "qc_runtime.h"

#define MANIFEST_TEXT "manifest.txt"
#define SIGNATURE "manifest.sig"
#define LIBRARY "model.so"
#define CONSTANTS "constants.bin"
#define TVM_RUNTIME "lib/libtvm_runtime.so"
#define TVM_FFI "lib/libtvm_ffi.so"
#define CUDART "lib/libcudart.so.13"
#define TVM_RUNTIME_CUDA "lib/libtvm_runtime_cuda.so"

#define DIGEST_HEX 64 /* characters of a SHA-256 in hexadecimal */
#define ALIGNMENT 64  /* bytes; kernels load whole vector registers with aligned instructions */

/* Returns from the calling function if the expression is no QC_OK. */
#define TRY(expression)                          \
  do {                                           \
    qc_status try_status = (expression);         \
    if (try_status != QC_OK) return try_status;  \
  } while (0)

/* status.c: keeps the text for qc_error() and returns the status. */
qc_status fail(qc_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
qc_status out_of_memory(void);

/* sha256.c */
typedef struct {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[64];
} sha256_context;

void sha256_init(sha256_context *context);
void sha256_update(sha256_context *context, const void *data, size_t size);
void sha256_hex(sha256_context *context, char hex[DIGEST_HEX + 1]);

/* files.c */
char *join_path(const char *folder, const char *name); /* NULL if out of memory */
qc_status read_text(const char *path, size_t limit, char **text, size_t *size);
qc_status map_file(const char *path, void **data, size_t *size); /* read-only */
qc_status hash_file(const char *path, char hex[DIGEST_HEX + 1]); /* QC_ERROR_BUNDLE if it cannot be read */

/* manifest.c */
typedef struct {
  const char *name, *dtype_name;
  DLDataType dtype;
  int64_t *shape;
  size_t ndim, size;
  bool quantized;
  double scale;
  int32_t zero_point;
  size_t offset; /* of a constant, in its file */
} tensor_spec;

typedef struct {
  char *path;
  char digest[DIGEST_HEX + 1];
} file_entry;

typedef struct {
  char *name;
  char **features;
  size_t feature_count;
} target_needs;

typedef struct {
  char *text;  /* the file; all strings point into it */
  target_needs target;
  char *family;
  int capability; /* compute capability that the GPU code needs, as 80 for 8.0; 0 without GPU code */
  target_needs *alternatives;
  tensor_spec *inputs, *outputs, *constants;
  file_entry *files;
  size_t alternative_count, input_count, output_count, constant_count, file_count;
} manifest;

qc_status manifest_read(const char *bundle, manifest *out); /* what it allocates is freed even after a failure */
void manifest_free(manifest *m);
const file_entry *manifest_file(const manifest *m, const char *path); /* NULL if it lists none of this name */

/* check.c: what must hold before anything of a bundle is loaded as code. */
qc_status check_bundle(const char *bundle, const manifest *m);

/* cpu.c */
qc_status check_cpu(const manifest *m);

/* gpu.c */
qc_status check_gpu(const manifest *m);

/* threads.c */
int default_threads(void);
int available_cpus(int *numbers, int capacity); /* how many there are; the first of them are written */

/* tvm.c: TVM's runtime through its C interface. A handle is a counted reference to an object of it. */
typedef void *tvm_handle;
typedef struct tvm_library tvm_library; /* a loaded model.so */
typedef struct tvm_machine tvm_machine; /* a virtual machine for it, which runs one call at a time */

qc_status tvm_load(const char *bundle, const manifest *m, tvm_library **out);
void tvm_unload(tvm_library *library);
qc_status tvm_new_machine(tvm_library *library, tvm_machine **out);
void tvm_free_machine(tvm_machine *machine);
qc_status tvm_configure_threads(int threads);
/* Shows memory, does not own it; with gpu a copy of it, which the GPU has. */
qc_status tvm_tensor(const tensor_spec *spec, void *data, bool gpu, tvm_handle *out);
qc_status tvm_read(const DLTensor *output, void *to, size_t size); /* an output of tvm_call */
void tvm_release(tvm_handle handle);

/* Calls the model; on success *result is to be released, and outputs point into it, count of them. */
qc_status tvm_call(tvm_machine *machine, const tvm_handle *arguments, size_t argument_count, tvm_handle *result,
                   const DLTensor **outputs, size_t count);

#endif
