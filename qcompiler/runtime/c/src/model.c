/* The functions of qc_runtime.h that deal with a model. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* A virtual machine runs one call at a time, so each call takes one from a stack, which grows with the number of
 * simultaneous calls; the library and its constants are shared. */
typedef struct slot {
  struct slot *next;
  tvm_machine *machine;
  void **copies;           /* an input's aligned copy, where one was needed */
  tvm_handle *arguments;    /* of a call: room for the inputs' tensors, then the constants' */
  const DLTensor **outputs; /* of a call */
} slot;

struct qc_model {
  manifest manifest;
  tvm_library *library;
  void *mapped; /* the file of the constants */
  size_t mapped_size;
  tvm_handle *constants; /* tensors over it */
  _Atomic int threads;
  int initial_threads;
  pthread_mutex_t lock;
  slot *idle;
};

static void free_slot(slot *s, size_t inputs) {
  if (!s) return;
  for (size_t i = 0; s->copies && i < inputs; ++i) free(s->copies[i]);
  free(s->copies);
  free(s->arguments);
  free(s->outputs);
  tvm_free_machine(s->machine);
  free(s);
}

static qc_status new_slot(qc_model *model, slot **out) {
  const size_t inputs = model->manifest.input_count;
  slot *s = calloc(1, sizeof *s);
  if (!s) return out_of_memory();
  s->copies = calloc(inputs + 1, sizeof *s->copies);
  s->arguments = calloc(inputs + model->manifest.constant_count + 1, sizeof *s->arguments);
  s->outputs = calloc(model->manifest.output_count + 1, sizeof *s->outputs);
  qc_status status = s->copies && s->arguments && s->outputs ? tvm_new_machine(model->library, &s->machine)
                                                             : out_of_memory();
  if (status != QC_OK) {
    free_slot(s, inputs);
    return status;
  }
  for (size_t i = 0; i < model->manifest.constant_count; ++i) s->arguments[inputs + i] = model->constants[i];
  *out = s;
  return QC_OK;
}

static qc_status take_slot(qc_model *model, slot **out) {
  pthread_mutex_lock(&model->lock);
  *out = model->idle;
  if (*out) model->idle = (*out)->next;
  pthread_mutex_unlock(&model->lock);
  return *out ? QC_OK : new_slot(model, out);
}

static void give_back(qc_model *model, slot *s) {
  pthread_mutex_lock(&model->lock);
  s->next = model->idle;
  model->idle = s;
  pthread_mutex_unlock(&model->lock);
}

static qc_status map_constants(const char *bundle, qc_model *model) {
  const manifest *m = &model->manifest;
  if (!m->constant_count) return QC_OK;
  char *path = join_path(bundle, CONSTANTS);
  model->constants = calloc(m->constant_count, sizeof *model->constants);
  qc_status status = path && model->constants ? map_file(path, &model->mapped, &model->mapped_size) : out_of_memory();
  free(path);
  for (size_t i = 0; status == QC_OK && i < m->constant_count; ++i) {
    const tensor_spec *spec = &m->constants[i];
    if (spec->offset > model->mapped_size || spec->size > model->mapped_size - spec->offset)
      return fail(QC_ERROR_BUNDLE, "bundle %s: " CONSTANTS " is smaller than the manifest says; compile the model again",
                  bundle);
    status = tvm_tensor(spec, (char *)model->mapped + spec->offset, m->capability > 0, &model->constants[i]);
  }
  return status;
}

static qc_status load(const char *bundle, qc_model *model) {
  TRY(manifest_read(bundle, &model->manifest));
  TRY(check_bundle(bundle, &model->manifest));
  TRY(check_cpu(&model->manifest));
  TRY(check_gpu(&model->manifest));
  TRY(tvm_load(bundle, &model->manifest, &model->library));
  TRY(map_constants(bundle, model));
  slot *first = NULL; /* now, so that a library that does not start is told here */
  TRY(take_slot(model, &first));
  give_back(model, first);
  return QC_OK;
}

qc_status qc_load(const char *bundle, qc_model **model) {
  if (!bundle || !model) return fail(QC_ERROR_ARGUMENT, "qc_load: bundle and model must not be NULL");
  qc_model *made = calloc(1, sizeof *made);
  if (!made) return out_of_memory();
  pthread_mutex_init(&made->lock, NULL);
  made->threads = made->initial_threads = default_threads();
  qc_status status = load(bundle, made);
  if (status == QC_OK)
    *model = made;
  else
    qc_free(made);
  return status;
}

void qc_free(qc_model *model) {
  if (!model) return;
  for (slot *next, *s = model->idle; s; s = next) {
    next = s->next;
    free_slot(s, model->manifest.input_count);
  }
  for (size_t i = 0; model->constants && i < model->manifest.constant_count; ++i) tvm_release(model->constants[i]);
  free(model->constants);
  if (model->mapped) munmap(model->mapped, model->mapped_size);
  tvm_unload(model->library);
  manifest_free(&model->manifest);
  pthread_mutex_destroy(&model->lock);
  free(model);
}

size_t qc_input_count(const qc_model *model) { return model ? model->manifest.input_count : 0; }

size_t qc_output_count(const qc_model *model) { return model ? model->manifest.output_count : 0; }

static qc_status tensor_info(const char *kind, const tensor_spec *specs, size_t count, size_t index,
                             qc_tensor_info *info) {
  if (!info) return fail(QC_ERROR_ARGUMENT, "qc_%s_info: info must not be NULL", kind);
  if (index >= count)
    return fail(QC_ERROR_ARGUMENT, "qc_%s_info: index is %zu; the model has %zu %ss", kind, index, count, kind);
  const tensor_spec *spec = &specs[index];
  *info = (qc_tensor_info){.name = spec->name,
                           .dtype = spec->dtype_name,
                           .shape = spec->shape,
                           .ndim = spec->ndim,
                           .size = spec->size,
                           .quantized = spec->quantized,
                           .scale = spec->scale,
                           .zero_point = spec->zero_point};
  return QC_OK;
}

qc_status qc_input_info(const qc_model *model, size_t index, qc_tensor_info *info) {
  if (!model) return fail(QC_ERROR_ARGUMENT, "qc_input_info: model must not be NULL");
  return tensor_info("input", model->manifest.inputs, model->manifest.input_count, index, info);
}

qc_status qc_output_info(const qc_model *model, size_t index, qc_tensor_info *info) {
  if (!model) return fail(QC_ERROR_ARGUMENT, "qc_output_info: model must not be NULL");
  return tensor_info("output", model->manifest.outputs, model->manifest.output_count, index, info);
}

qc_status qc_set_threads(qc_model *model, int threads) {
  if (!model) return fail(QC_ERROR_ARGUMENT, "qc_set_threads: model must not be NULL");
  const int most = available_cpus(NULL, 0);
  if (threads < 0 || threads > most)
    return fail(QC_ERROR_ARGUMENT,
                "qc_set_threads: threads is %d; this thread may use %d CPUs: give 1 to %d, or 0 for the default",
                threads, most, most);
  model->threads = threads ? threads : model->initial_threads;
  return QC_OK;
}

int qc_threads(const qc_model *model) { return model ? model->threads : 0; }

static qc_status check_buffers(const char *kind, const tensor_spec *specs, size_t count, const qc_buffer *buffers,
                               size_t given) {
  if (given != count)
    return fail(QC_ERROR_INPUT, "qc_run: got %zu %ss; the model has %zu", given, kind, count);
  for (size_t i = 0; i < count; ++i) {
    if (!buffers || (!buffers[i].data && specs[i].size))
      return fail(QC_ERROR_INPUT, "qc_run: %s %zu (%s) is NULL", kind, i, specs[i].name);
    if (buffers[i].size != specs[i].size)
      return fail(QC_ERROR_INPUT, "qc_run: %s %zu (%s) has %zu bytes; expected %zu", kind, i, specs[i].name,
                  buffers[i].size, specs[i].size);
  }
  return QC_OK;
}

/* A tensor over the caller's memory, or over a copy where that is not aligned. */
static qc_status wrap_input(const tensor_spec *spec, const qc_buffer *buffer, bool gpu, void **copy, tvm_handle *out) {
  void *data = buffer->data;
  if ((uintptr_t)data % ALIGNMENT || !data) {
    if (!*copy) *copy = aligned_alloc(ALIGNMENT, (spec->size / ALIGNMENT + 1) * ALIGNMENT);
    if (!*copy) return out_of_memory();
    if (spec->size) memcpy(*copy, data, spec->size);
    data = *copy;
  }
  return tvm_tensor(spec, data, gpu, out);
}

static qc_status check_output(const tensor_spec *spec, const DLTensor *tensor) {
  bool equal = tensor->ndim == (int32_t)spec->ndim && tensor->dtype.bits == spec->dtype.bits &&
               tensor->dtype.code == spec->dtype.code && tensor->dtype.lanes == 1;
  for (size_t d = 0; equal && d < spec->ndim; ++d) equal = tensor->shape[d] == spec->shape[d];
  if (equal) return QC_OK;
  return fail(QC_ERROR_BUNDLE, "output %s of the library is not as the manifest says; compile the model again",
              spec->name);
}

static qc_status run(const manifest *m, slot *s, const qc_buffer *inputs, const qc_buffer *outputs) {
  size_t wrapped = 0;
  qc_status status = QC_OK;
  for (; status == QC_OK && wrapped < m->input_count; wrapped += status == QC_OK)
    status = wrap_input(&m->inputs[wrapped], &inputs[wrapped], m->capability > 0, &s->copies[wrapped],
                        &s->arguments[wrapped]);
  tvm_handle result = NULL;
  if (status == QC_OK)
    status = tvm_call(s->machine, s->arguments, m->input_count + m->constant_count, &result, s->outputs, m->output_count);
  for (size_t i = 0; i < wrapped; ++i) tvm_release(s->arguments[i]);
  for (size_t i = 0; status == QC_OK && i < m->output_count; ++i) {
    status = check_output(&m->outputs[i], s->outputs[i]);
    if (status == QC_OK) status = tvm_read(s->outputs[i], outputs[i].data, m->outputs[i].size);
  }
  tvm_release(result);
  return status;
}

qc_status qc_run(qc_model *model, const qc_buffer *inputs, size_t input_count, const qc_buffer *outputs,
                 size_t output_count) {
  if (!model) return fail(QC_ERROR_ARGUMENT, "qc_run: model must not be NULL");
  const manifest *m = &model->manifest;
  TRY(check_buffers("input", m->inputs, m->input_count, inputs, input_count));
  TRY(check_buffers("output", m->outputs, m->output_count, outputs, output_count));
  TRY(tvm_configure_threads(model->threads));
  slot *s;
  TRY(take_slot(model, &s));
  qc_status status = run(m, s, inputs, outputs);
  if (status == QC_OK)
    give_back(model, s);
  else
    free_slot(s, m->input_count); /* a machine is not used again after an error */
  return status;
}
