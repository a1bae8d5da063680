/* Runs a model that qcompiler compiled, from C or C++, without Python.
 *
 *     qc_model *model;
 *     if (qc_load("my-bundle", &model) != QC_OK) { fprintf(stderr, "%s\n", qc_error()); exit(1); }
 *     qc_buffer in = {image, sizeof image}, out = {scores, sizeof scores};
 *     if (qc_run(model, &in, 1, &out, 1) != QC_OK) { fprintf(stderr, "%s\n", qc_error()); exit(1); }
 *     qc_free(model);
 *
 * Every function that can fail returns a qc_status; nothing is printed, no exception and no signal crosses this
 * interface, and a failed call changes nothing. qc_error() tells what was wrong, where, and what to do.
 *
 * Threads: any number of threads may use one model at the same time, and several models may live in one process. Only
 * qc_free() must be the last call on its model.
 *
 * Trust: qc_load() compares the SHA-256 of every file of the bundle with manifest.txt, which also holds its own, before
 * it loads any of them as code. That finds damage and mixed-up files. Against somebody who can write to the bundle,
 * sign it with 'qcompile sign' and check the Ed25519 signature manifest.sig of manifest.txt before qc_load(), with a
 * library of your choice: this runtime does not check signatures. One file is enough, since all others hang on it.
 */
#ifndef QC_RUNTIME_H
#define QC_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QC_API __attribute__((visibility("default")))
#else
#define QC_API
#endif

/* How a call ended. The numbers are fixed. */
typedef enum qc_status {
  QC_OK = 0,
  QC_ERROR_ARGUMENT = 1, /* a null pointer, an index out of range, or a number that is not allowed */
  QC_ERROR_BUNDLE = 2,   /* the bundle is missing, incomplete, damaged, or of another format */
  QC_ERROR_CPU = 3,      /* the bundle is for another architecture, or this CPU lacks features that it needs */
  QC_ERROR_CONFLICT = 4, /* this process has loaded another version of TVM's runtime */
  QC_ERROR_INPUT = 5,    /* buffers of a run have the wrong number or sizes */
  QC_ERROR_THREADS = 6,  /* the calling thread's workers cannot be set up */
  QC_ERROR_MEMORY = 7,   /* out of memory */
  QC_ERROR_RUNTIME = 8,  /* TVM's runtime failed; its own words are in qc_error() */
  QC_ERROR_GPU = 9       /* the bundle needs a GPU, or a driver, that this machine lacks */
} qc_status;

/* A loaded model. */
typedef struct qc_model qc_model;

/* An input or output of a model. Pointers in it belong to the model and live as long. */
typedef struct qc_tensor_info {
  const char *name;
  const char *dtype;    /* as NumPy names it: "float32", "uint8", ... */
  const int64_t *shape; /* extents, ndim of them */
  size_t ndim;
  size_t size;          /* bytes: the product of the extents and the size of an element */
  int quantized;        /* 1 if scale and zero_point say something, else 0 */
  double scale;         /* real = scale * (quantized - zero_point); where the tensor is quantized, or is */
  int32_t zero_point;   /* quantized first or dequantized last by the model itself */
} qc_tensor_info;

/* The caller's memory of one tensor: dense, rows last. */
typedef struct qc_buffer {
  void *data;  /* an input is only read; at a multiple of 64 bytes it is read in place, else it is copied first */
  size_t size; /* bytes; exactly the tensor's */
} qc_buffer;

/* Loads a bundle: the folder that 'qcompile compile' wrote, or an unpacked archive of 'qcompile export'.
 *
 * Its files and this CPU are checked first; nothing of it is executed before. *model is set on success only.
 */
QC_API qc_status qc_load(const char *bundle, qc_model **model);

/* Releases a model; NULL is allowed. TVM's runtime stays in the process for the next model. */
QC_API void qc_free(qc_model *model);

/* Numbers of inputs and outputs, and what they are. An index counts from 0. */
QC_API size_t qc_input_count(const qc_model *model);
QC_API qc_status qc_input_info(const qc_model *model, size_t index, qc_tensor_info *info);
QC_API size_t qc_output_count(const qc_model *model);
QC_API qc_status qc_output_info(const qc_model *model, size_t index, qc_tensor_info *info);

/* Sets how many threads a run uses, the calling one included, from the next run on.
 *
 * 0 stands for the number after loading: one a physical core that this process may use, within the limit of its
 * control group. At most one a CPU that the calling thread may use. Each thread that calls qc_run() has workers of its
 * own, which start with its first run; so keep calling threads.
 */
QC_API qc_status qc_set_threads(qc_model *model, int threads);
QC_API int qc_threads(const qc_model *model);

/* Runs the model once: reads the inputs, writes the outputs, in the model's order. */
QC_API qc_status qc_run(qc_model *model, const qc_buffer *inputs, size_t input_count, const qc_buffer *outputs,
                        size_t output_count);

/* What the last call that failed in the calling thread said; "" if none has. One line, valid until the next failure
 * in this thread. */
QC_API const char *qc_error(void);

/* A status in words, such as "bundle is missing, incomplete or damaged". */
QC_API const char *qc_status_text(qc_status status);

/* Version of this runtime, such as "0.1.0". */
QC_API const char *qc_version(void);

#ifdef __cplusplus
}
#endif
#endif
