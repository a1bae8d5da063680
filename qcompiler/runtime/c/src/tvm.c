/* Loads TVM's runtime and a bundle's library, and calls functions of them through the C interface of tvm_ffi.
 *
 * The libraries are opened with dlopen, after the checks; this file is linked with none of them.
 */
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "internal.h"

static struct {
  int (*release)(TVMFFIObjectHandle);
  int (*find_global)(const TVMFFIByteArray *, TVMFFIObjectHandle *);
  int (*call)(TVMFFIObjectHandle, TVMFFIAny *, int32_t, TVMFFIAny *);
  void (*take_error)(TVMFFIObjectHandle *);
  int (*from_dlpack)(DLManagedTensor *, int32_t, int32_t, TVMFFIObjectHandle *);
  TVMFFIObjectHandle load_module, get_function, make_array, config_threadpool, num_threads;
  TVMFFIObjectHandle to_device; /* with the runtime for GPUs alone */
  char digests[2][DIGEST_HEX + 1]; /* of the files they came from; empty before the first load */
} tvm;

static const char *const libraries[2] = {TVM_FFI, TVM_RUNTIME}; /* in the order of loading */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

struct tvm_library {
  tvm_handle module;
  bool gpu;
};

struct tvm_machine {
  tvm_handle machine, entry;
};

/* An object's own data follow its header. */
static void *body(tvm_handle object) { return (TVMFFIObject *)object + 1; }

void tvm_release(tvm_handle handle) {
  if (handle) tvm.release(handle);
}

static qc_status raised(const char *what) {
  TVMFFIObjectHandle error = NULL;
  tvm.take_error(&error);
  if (!error) return fail(QC_ERROR_RUNTIME, "%s failed, and TVM's runtime does not say why", what);
  const TVMFFIErrorCell *cell = body(error);
  fail(QC_ERROR_RUNTIME, "%s failed: %.*s: %.*s", what, (int)cell->kind.size, cell->kind.data,
       (int)cell->message.size, cell->message.data);
  tvm.release(error);
  return QC_ERROR_RUNTIME;
}

static TVMFFIAny of_int(int64_t value) { return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value}; }
static TVMFFIAny of_text(const char *text) { return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = text}; }
static TVMFFIAny of_object(tvm_handle object) {
  return (TVMFFIAny){.type_index = ((TVMFFIObject *)object)->type_index, .v_obj = object};
}

static qc_status call(tvm_handle function, const char *what, TVMFFIAny *arguments, size_t count, TVMFFIAny *result) {
  *result = (TVMFFIAny){.type_index = kTVMFFINone};
  return tvm.call(function, arguments, (int32_t)count, result) == 0 ? QC_OK : raised(what);
}

/* As call, for a result that is an object. */
static qc_status call_for_object(tvm_handle function, const char *what, TVMFFIAny *arguments, size_t count,
                                 tvm_handle *out) {
  TVMFFIAny result;
  TRY(call(function, what, arguments, count, &result));
  if (result.type_index < kTVMFFIStaticObjectBegin)
    return fail(QC_ERROR_RUNTIME, "%s gave nothing; compile the model again", what);
  *out = result.v_obj;
  return QC_OK;
}

static qc_status member(tvm_handle module, const char *name, tvm_handle *out) {
  TVMFFIAny arguments[] = {of_object(module), of_text(name), {.type_index = kTVMFFIBool, .v_int64 = 0}};
  return call_for_object(tvm.get_function, name, arguments, 3, out);
}

static qc_status find_symbol(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  if (!symbol) return fail(QC_ERROR_CONFLICT, "TVM's runtime lacks the function %s", name);
  memcpy(function, &symbol, sizeof symbol);
  return QC_OK;
}

static qc_status find_global(const char *name, tvm_handle *out) {
  TVMFFIByteArray text = {name, strlen(name)};
  if (tvm.find_global(&text, out) != 0) return raised(name);
  return *out ? QC_OK : fail(QC_ERROR_CONFLICT, "TVM's runtime lacks the function %s", name);
}

/* Opens one library of the runtime, or takes the same file that the process has open already: a second copy would
 * have a registry of its own, or register everything twice. */
static qc_status open_library(const char *bundle, const char *name, const char *digest, void **out) {
  void *there = dlopen(strrchr(name, '/') + 1, RTLD_NOLOAD | RTLD_LAZY | RTLD_GLOBAL);
  if (there) {
    struct link_map *map = NULL;
    char hex[DIGEST_HEX + 1];
    if (dlinfo(there, RTLD_DI_LINKMAP, &map) != 0) return fail(QC_ERROR_CONFLICT, "dlinfo failed: %s", dlerror());
    TRY(hash_file(map->l_name, hex));
    if (strcmp(hex, digest))
      return fail(QC_ERROR_CONFLICT,
                  "bundle %s was made with another %s than %s, which this process has loaded; load it in another "
                  "process, or compile both models with the same version",
                  bundle, name, map->l_name);
    *out = there;
    return QC_OK;
  }
  char *path = join_path(bundle, name);
  if (!path) return out_of_memory();
  /* Global, because a model's library finds the runtime's functions by symbol. */
  *out = dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
  free(path);
  return *out ? QC_OK : fail(QC_ERROR_RUNTIME, "loading %s failed: %s", name, dlerror());
}

static qc_status load_runtime(const char *bundle, const manifest *m) {
  void *opened[2];
  for (int i = 0; i < 2; ++i) {
    const char *digest = manifest_file(m, libraries[i])->digest;
    if (!*tvm.digests[1]) {
      TRY(open_library(bundle, libraries[i], digest, &opened[i]));
    } else if (strcmp(tvm.digests[i], digest)) {
      return fail(QC_ERROR_CONFLICT,
                  "bundle %s was made with another %s than the model that this process loaded first; load it in "
                  "another process, or compile both models with the same version",
                  bundle, libraries[i]);
    }
  }
  if (*tvm.digests[1]) return QC_OK;
  TRY(find_symbol(opened[0], "TVMFFIObjectDecRef", &tvm.release));
  TRY(find_symbol(opened[0], "TVMFFIFunctionGetGlobal", &tvm.find_global));
  TRY(find_symbol(opened[0], "TVMFFIFunctionCall", &tvm.call));
  TRY(find_symbol(opened[0], "TVMFFIErrorMoveFromRaised", &tvm.take_error));
  TRY(find_symbol(opened[0], "TVMFFITensorFromDLPack", &tvm.from_dlpack));
  TRY(find_global("ffi.ModuleLoadFromFile", &tvm.load_module));
  TRY(find_global("ffi.ModuleGetFunction", &tvm.get_function));
  TRY(find_global("ffi.Array", &tvm.make_array));
  TRY(find_global("runtime.config_threadpool", &tvm.config_threadpool));
  TRY(find_global("runtime.NumThreads", &tvm.num_threads));
  for (int i = 0; i < 2; ++i) strcpy(tvm.digests[i], manifest_file(m, libraries[i])->digest);
  return QC_OK;
}

/* TVM's runtime for GPUs, on top of its runtime for processors. NVIDIA's runtime may be there in another version: all of
 * one major version are compatible. */
static qc_status load_gpu_runtime(const char *bundle, const manifest *m) {
  if (tvm.to_device) return QC_OK;
  void *opened = dlopen(strrchr(CUDART, '/') + 1, RTLD_NOLOAD | RTLD_LAZY | RTLD_GLOBAL);
  if (!opened) TRY(open_library(bundle, CUDART, manifest_file(m, CUDART)->digest, &opened));
  TRY(open_library(bundle, TVM_RUNTIME_CUDA, manifest_file(m, TVM_RUNTIME_CUDA)->digest, &opened));
  return find_global("vm.builtin.to_device", &tvm.to_device);
}

/* A name of the library that dlopen has not seen. For a name that it has, it gives the library that it loaded from
 * there, even if the file is a new one by now. "/./" and "//" are the zeros and ones of a count. */
static char *fresh_path(const char *bundle) {
  static unsigned count;
  unsigned number = count++; /* under the lock */
  char name[3 * 32 + sizeof LIBRARY] = "";
  size_t used = 0;
  for (; number; number >>= 1) used += (size_t)sprintf(name + used, number & 1 ? "/" : "./");
  strcpy(name + used, LIBRARY);
  return join_path(bundle, name);
}

qc_status tvm_load(const char *bundle, const manifest *m, tvm_library **out) {
  tvm_library *library = calloc(1, sizeof *library);
  if (!library) return out_of_memory();
  pthread_mutex_lock(&loading);
  library->gpu = m->capability > 0;
  qc_status status = load_runtime(bundle, m);
  if (status == QC_OK && library->gpu) status = load_gpu_runtime(bundle, m);
  if (status == QC_OK) {
    char *path = fresh_path(bundle);
    TVMFFIAny arguments[] = {of_text(path)};
    status = path ? call_for_object(tvm.load_module, "loading " LIBRARY, arguments, 1, &library->module)
                  : out_of_memory();
    free(path);
  }
  pthread_mutex_unlock(&loading);
  if (status != QC_OK)
    tvm_unload(library);
  else
    *out = library;
  return status;
}

void tvm_unload(tvm_library *library) {
  if (!library) return;
  tvm_release(library->module);
  free(library);
}

qc_status tvm_new_machine(tvm_library *library, tvm_machine **out) {
  enum { POOLED = 2 }; /* TVM's pooling allocator */
  tvm_machine *machine = calloc(1, sizeof *machine);
  if (!machine) return out_of_memory();
  tvm_handle make = NULL, start = NULL;
  /* The device that kernels run on comes first. */
  TVMFFIAny devices[] = {of_int(kDLCUDA), of_int(0), of_int(POOLED), of_int(kDLCPU), of_int(0), of_int(POOLED)}, nothing;
  const size_t first = library->gpu ? 0 : 3;
  qc_status status = member(library->module, "vm_load_executable", &make);
  if (status == QC_OK) status = call_for_object(make, "vm_load_executable", NULL, 0, &machine->machine);
  if (status == QC_OK) status = member(machine->machine, "vm_initialization", &start);
  if (status == QC_OK) status = call(start, "vm_initialization", devices + first, 6 - first, &nothing);
  if (status == QC_OK) status = member(machine->machine, "main", &machine->entry);
  tvm_release(make);
  tvm_release(start);
  if (status != QC_OK)
    tvm_free_machine(machine);
  else
    *out = machine;
  return status;
}

void tvm_free_machine(tvm_machine *machine) {
  if (!machine) return;
  tvm_release(machine->entry);
  tvm_release(machine->machine);
  free(machine);
}

/* TVM keeps one pool of workers for each thread that calls it, makes it at the first parallel loop, and never lets it
 * grow; so it is made with room for every CPU first, and then told how many to use. Workers may move among the calling
 * thread's CPUs: pinned ones of two processes would sit on the same cores. */
static qc_status configure_pool(int threads) {
  enum { SHARE_CPUS = -3 }; /* TVM's affinity mode in which every worker may use every CPU of the list */
  int allowed = available_cpus(NULL, 0), count = allowed > threads ? allowed : threads;
  int *numbers = malloc((size_t)count * sizeof *numbers);
  TVMFFIAny *names = calloc((size_t)count, sizeof *names);
  char(*texts)[12] = calloc((size_t)count, sizeof *texts);
  qc_status status = numbers && names && texts ? QC_OK : out_of_memory();
  tvm_handle list = NULL;
  if (status == QC_OK) {
    available_cpus(numbers, count);
    for (int i = 0; i < count; ++i) {
      snprintf(texts[i], sizeof *texts, "%d", allowed ? numbers[i % allowed] : 0);
      names[i] = of_text(texts[i]);
    }
    status = call_for_object(tvm.make_array, "ffi.Array", names, (size_t)count, &list);
  }
  if (status == QC_OK) {
    TVMFFIAny arguments[] = {of_int(SHARE_CPUS), of_int(threads), of_object(list)}, nothing;
    status = call(tvm.config_threadpool, "runtime.config_threadpool", arguments, 3, &nothing);
  }
  tvm_release(list);
  free(numbers);
  free(names);
  free(texts);
  return status;
}

qc_status tvm_configure_threads(int threads) {
  static _Thread_local pid_t pool_process; /* the process in which this thread's pool was made; 0 before */
  TVMFFIAny actual;
  if (pool_process && pool_process != getpid())
    return fail(QC_ERROR_THREADS,
                "this process was forked after the model had run, and its worker threads did not come along; load "
                "the model after the fork, or run it in a new thread");
  if (pool_process) {
    TRY(call(tvm.num_threads, "runtime.NumThreads", NULL, 0, &actual));
    if (actual.v_int64 == threads) return QC_OK; /* other users of TVM in this thread may have changed it */
  }
  TRY(configure_pool(threads));
  TRY(call(tvm.num_threads, "runtime.NumThreads", NULL, 0, &actual));
  if (actual.v_int64 != threads)
    return fail(QC_ERROR_THREADS,
                "the TVM worker pool of this thread has room for %lld, not %d: other code made it first; run the model "
                "in another thread or before that code, or set TVM_NUM_THREADS=%d",
                (long long)actual.v_int64, threads, threads);
  pool_process = getpid();
  return QC_OK;
}

static void free_view(DLManagedTensor *view) { free(view); }

/* A copy of a tensor in the memory of another device, when it is there. */
static qc_status copy_to(DLDeviceType device, tvm_handle tensor, tvm_handle *out) {
  TVMFFIAny arguments[] = {of_object(tensor), of_int(device), of_int(0)};
  return call_for_object(tvm.to_device, "copying a tensor", arguments, 3, out);
}

static qc_status wrap(const tensor_spec *spec, void *data, tvm_handle *out) {
  DLManagedTensor *view = calloc(1, sizeof *view);
  if (!view) return out_of_memory();
  view->dl_tensor = (DLTensor){.data = data,
                               .device = {kDLCPU, 0},
                               .ndim = (int32_t)spec->ndim,
                               .dtype = spec->dtype,
                               .shape = spec->shape}; /* read only, and as long as the model */
  view->deleter = free_view;
  if (tvm.from_dlpack(view, ALIGNMENT, 1, out) == 0) return QC_OK;
  free(view);
  return raised("wrapping an input");
}

qc_status tvm_tensor(const tensor_spec *spec, void *data, bool gpu, tvm_handle *out) {
  if (!gpu) return wrap(spec, data, out);
  tvm_handle here = NULL;
  TRY(wrap(spec, data, &here));
  qc_status status = copy_to(kDLCUDA, here, out);
  tvm_release(here);
  return status;
}

qc_status tvm_read(const DLTensor *output, void *to, size_t size) {
  tvm_handle copy = NULL;
  if (output->device.device_type != kDLCPU) {
    TRY(copy_to(kDLCPU, (TVMFFIObject *)output - 1, &copy));
    output = body(copy);
  }
  if (size) memcpy(to, (const char *)output->data + output->byte_offset, size);
  tvm_release(copy);
  return QC_OK;
}

/* Collects the tensors of a result, which is a tensor or a nested array of them. */
static size_t collect(const TVMFFIAny *value, const DLTensor **outputs, size_t found, size_t count) {
  if (value->type_index == kTVMFFITensor) {
    if (found < count) outputs[found] = body(value->v_obj);
    return found + 1;
  }
  if (value->type_index != kTVMFFIArray) return found;
  const TVMFFISeqCell *cell = body(value->v_obj);
  for (int64_t i = 0; i < cell->size; ++i) found = collect((const TVMFFIAny *)cell->data + i, outputs, found, count);
  return found;
}

qc_status tvm_call(tvm_machine *machine, const tvm_handle *arguments, size_t argument_count, tvm_handle *result,
                   const DLTensor **outputs, size_t count) {
  TVMFFIAny *values = calloc(argument_count + 1, sizeof *values);
  if (!values) return out_of_memory();
  for (size_t i = 0; i < argument_count; ++i) values[i] = of_object(arguments[i]);
  qc_status status = call_for_object(machine->entry, "the model", values, argument_count, result);
  free(values);
  TRY(status);
  const TVMFFIAny whole = of_object(*result);
  size_t found = collect(&whole, outputs, 0, count);
  if (found == count) return QC_OK;
  tvm_release(*result);
  *result = NULL;
  return fail(QC_ERROR_BUNDLE, "library returns %zu outputs, and the manifest says %zu; compile the model again", found,
              count);
}
