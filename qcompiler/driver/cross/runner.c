/* Runs a model library on inputs given in a file: runner MODEL.so REQUEST RESPONSE [MAPS].
 *
 * REQUEST:  u32 runs, u32 inputs of a run, u32 constants; then every constant, and every input of every run.
 * RESPONSE: u32 runs, u32 outputs of a run; then every tensor of every run.
 * A tensor: u32 code, bits and rank, i64 extents, and its bytes. Numbers are little-endian.
 * MAPS gets the process's memory map with the library in it.
 * The exit status is 0, or 1 with the reason on standard error.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

#define MAX_RANK 16
#define ALIGNMENT 64

static void fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

static void check(int code, const char* what) {
  if (code == 0) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) fail("%s failed", what);
  TVMFFIErrorCell* cell = (TVMFFIErrorCell*)((TVMFFIObject*)error + 1);
  fail("%s: %.*s", what, (int)cell->message.size, cell->message.data);
}

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny* args, int count, const char* what) {
  TVMFFIAny result;
  memset(&result, 0, sizeof result);
  check(TVMFFIFunctionCall(function, args, count, &result), what);
  return result;
}

static TVMFFIObjectHandle global(const char* name) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  check(TVMFFIFunctionGetGlobal(&key, &function), name);
  if (function == NULL) fail("the runtime has no function %s", name);
  return function;
}

static TVMFFIAny integer(int64_t value) {
  TVMFFIAny any;
  memset(&any, 0, sizeof any);
  any.type_index = kTVMFFIInt;
  any.v_int64 = value;
  return any;
}

static TVMFFIAny text(const char* value) {
  TVMFFIAny any;
  memset(&any, 0, sizeof any);
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = value;
  return any;
}

static TVMFFIObjectHandle method(TVMFFIAny module, const char* name) {
  TVMFFIAny args[3] = {module, text(name), integer(1)};
  args[2].type_index = kTVMFFIBool;
  TVMFFIAny function = call(global("ffi.ModuleGetFunction"), args, 3, name);
  if (function.type_index != kTVMFFIFunction) fail("the library has no function %s", name);
  return function.v_obj;
}

static void read_all(FILE* file, void* data, size_t size) {
  if (fread(data, 1, size, file) != size) fail("the request ends early");
}

static void write_all(FILE* file, const void* data, size_t size) {
  if (fwrite(data, 1, size, file) != size) fail("the response cannot be written");
}

static size_t bytes_of(const DLTensor* tensor) {
  size_t bytes = (tensor->dtype.bits * tensor->dtype.lanes + 7) / 8;
  for (int k = 0; k < tensor->ndim; k++) bytes *= (size_t)tensor->shape[k];
  return bytes;
}

static void release(DLManagedTensor* managed) {
  free(managed->dl_tensor.data);
  free(managed->dl_tensor.shape);
  free(managed);
}

static TVMFFIAny read_tensor(FILE* file) {
  uint32_t head[3];
  read_all(file, head, sizeof head);
  if (head[2] > MAX_RANK) fail("a tensor of the request has %u axes", head[2]);
  DLManagedTensor* managed = calloc(1, sizeof *managed);
  DLTensor* tensor = &managed->dl_tensor;
  tensor->device.device_type = kDLCPU;
  tensor->dtype.code = (uint8_t)head[0];
  tensor->dtype.bits = (uint8_t)head[1];
  tensor->dtype.lanes = 1;
  tensor->ndim = (int32_t)head[2];
  /* Extents, then strides. */
  tensor->shape = calloc(2 * MAX_RANK, sizeof(int64_t));
  tensor->strides = tensor->shape + MAX_RANK;
  read_all(file, tensor->shape, head[2] * sizeof(int64_t));
  int64_t stride = 1;
  for (int k = tensor->ndim - 1; k >= 0; k--) {
    tensor->strides[k] = stride;
    stride *= tensor->shape[k];
  }
  size_t bytes = bytes_of(tensor);
  tensor->data = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
  read_all(file, tensor->data, bytes);
  managed->deleter = release;
  TVMFFIAny any;
  memset(&any, 0, sizeof any);
  any.type_index = kTVMFFITensor;
  TVMFFIObjectHandle handle = NULL;
  check(TVMFFITensorFromDLPack(managed, 0, 0, &handle), "input");
  any.v_obj = handle;
  return any;
}

static void write_tensor(FILE* file, TVMFFIAny any) {
  if (any.type_index != kTVMFFITensor) fail("an output is no tensor");
  const DLTensor* tensor = (const DLTensor*)(any.v_obj + 1);
  uint32_t head[3] = {tensor->dtype.code, tensor->dtype.bits, (uint32_t)tensor->ndim};
  write_all(file, head, sizeof head);
  write_all(file, tensor->shape, (size_t)tensor->ndim * sizeof(int64_t));
  write_all(file, (const char*)tensor->data + tensor->byte_offset, bytes_of(tensor));
}

static void copy_maps(const char* path) {
  FILE *source = fopen("/proc/self/maps", "r"), *target = fopen(path, "w");
  if (source == NULL || target == NULL) fail("%s cannot be written", path);
  for (int c; (c = fgetc(source)) != EOF;) fputc(c, target);
  if (fclose(target) != 0) fail("%s cannot be written", path);
  fclose(source);
}

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) fail("usage: runner MODEL.so REQUEST RESPONSE [MAPS]");
  TVMFFIAny path = text(argv[1]);
  TVMFFIAny library = call(global("ffi.ModuleLoadFromFile"), &path, 1, argv[1]);
  TVMFFIAny machine = call(method(library, "vm_load_executable"), NULL, 0, "vm_load_executable");
  TVMFFIAny start[3] = {integer(kDLCPU), integer(0), integer(2 /* pooled allocator */)};
  call(method(machine, "vm_initialization"), start, 3, "vm_initialization");
  TVMFFIObjectHandle entry = method(machine, "main");

  if (argc == 5) copy_maps(argv[4]);
  FILE* request = fopen(argv[2], "rb");
  if (request == NULL) fail("%s cannot be read", argv[2]);
  FILE* response = fopen(argv[3], "wb");
  if (response == NULL) fail("%s cannot be written", argv[3]);
  uint32_t head[3];
  read_all(request, head, sizeof head);
  uint32_t runs = head[0], count = head[1], constants = head[2];
  TVMFFIAny* inputs = calloc((size_t)count + constants + 1, sizeof *inputs);
  for (uint32_t k = 0; k < constants; k++) inputs[count + k] = read_tensor(request);
  for (uint32_t run = 0; run < runs; run++) {
    for (uint32_t k = 0; k < count; k++) inputs[k] = read_tensor(request);
    TVMFFIAny result = call(entry, inputs, (int)(count + constants), "main");
    const TVMFFIAny* outputs = &result;
    uint32_t produced = 1;
    if (result.type_index == kTVMFFIArray) {
      const TVMFFISeqCell* cell = (const TVMFFISeqCell*)(result.v_obj + 1);
      outputs = cell->data;
      produced = (uint32_t)cell->size;
    }
    if (run == 0) {
      uint32_t numbers[2] = {runs, produced};
      write_all(response, numbers, sizeof numbers);
    }
    for (uint32_t k = 0; k < produced; k++) write_tensor(response, outputs[k]);
    TVMFFIObjectDecRef(result.v_obj);
    for (uint32_t k = 0; k < count; k++) TVMFFIObjectDecRef(inputs[k].v_obj);
  }
  if (fclose(response) != 0) fail("%s cannot be written", argv[3]);
  return 0;
}
