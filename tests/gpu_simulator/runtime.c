/* libcudart.so.13 as far as TVM's runtime calls it: one device, whose memory driver.c has.
 * QC_SIMULATED_CAPABILITY is its compute capability, as 80; QC_SIMULATED_DEVICES how many there are. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_SUPPORTED = 801 };
enum {
  MAX_THREADS = 1, MAX_SHARED = 8, WARP = 10, REGISTERS = 12, MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75,
  CAPABILITY_MINOR = 76
};

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cudaGetDeviceCount(int *count) {
  *count = setting("QC_SIMULATED_DEVICES", 1);
  return *count ? SUCCESS : NO_DEVICE;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  const int capability = setting("QC_SIMULATED_CAPABILITY", 80);
  switch (attribute) {
    case MAX_THREADS: *value = 1024; break;
    case MAX_SHARED: *value = 49152; break;
    case WARP: *value = 32; break;
    case REGISTERS: *value = 65536; break;
    case MULTIPROCESSORS: *value = 1; break;
    case CAPABILITY_MAJOR: *value = capability / 10; break;
    case CAPABILITY_MINOR: *value = capability % 10; break;
    default: *value = 1024;
  }
  return SUCCESS;
}

void *simulated_allocate(size_t bytes);
void simulated_open(void);
void simulated_close(void);

int cudaMalloc(void **memory, size_t bytes) {
  *memory = simulated_allocate(bytes);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}

int cudaMallocHost(void **memory, size_t bytes) {
  *memory = malloc(bytes);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}

int cudaFree(void *memory) { return (void)memory, SUCCESS; }

int cudaFreeHost(void *memory) { return free(memory), SUCCESS; }

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  (void)kind, (void)stream;
  simulated_open();
  memcpy(to, from, bytes);
  simulated_close();
  return SUCCESS;
}

int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, void *stream) {
  (void)a, (void)b;
  return cudaMemcpyAsync(to, from, bytes, 0, stream);
}

int cudaGetDevice(int *device) { return *device = 0, SUCCESS; }
int cudaSetDevice(int device) { return (void)device, SUCCESS; }
int cudaMemGetInfo(size_t *available, size_t *total) { return *available = *total = (size_t)1 << 34, SUCCESS; }
int cudaGetDeviceProperties(void *properties, int device) { return (void)properties, (void)device, NOT_SUPPORTED; }
int cudaGetLastError(void) { return SUCCESS; }
int cudaPeekAtLastError(void) { return SUCCESS; }
const char *cudaGetErrorName(int error) { return (void)error, "simulated error"; }
const char *cudaGetErrorString(int error) { return (void)error, "simulated error"; }

int cudaEventCreate(void **event) { return *event = malloc(sizeof(struct timespec)), SUCCESS; }
int cudaEventDestroy(void *event) { return free(event), SUCCESS; }
int cudaEventRecord(void *event, void *stream) { return (void)stream, clock_gettime(CLOCK_MONOTONIC, event), SUCCESS; }
int cudaEventSynchronize(void *event) { return (void)event, SUCCESS; }
int cudaEventElapsedTime(float *ms, void *a, void *b) {
  const struct timespec *from = a, *to = b;
  return *ms = (float)((to->tv_sec - from->tv_sec) * 1e3 + (to->tv_nsec - from->tv_nsec) * 1e-6), SUCCESS;
}
int cudaStreamCreate(void **stream) { return *stream = malloc(1), SUCCESS; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return (void)flags, cudaStreamCreate(stream); }
int cudaStreamDestroy(void *stream) { return free(stream), SUCCESS; }
int cudaStreamSynchronize(void *stream) { return (void)stream, SUCCESS; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return (void)stream, (void)event, (void)flags, SUCCESS; }

int cudaStreamBeginCapture(void *stream, int mode) { return (void)stream, (void)mode, NOT_SUPPORTED; }
int cudaStreamEndCapture(void *stream, void **graph) { return (void)stream, (void)graph, NOT_SUPPORTED; }
int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { return (void)exec, (void)graph, (void)flags, NOT_SUPPORTED; }
int cudaGraphDestroy(void *graph) { return (void)graph, SUCCESS; }
int cudaGraphExecDestroy(void *exec) { return (void)exec, SUCCESS; }
int cudaGraphLaunch(void *exec, void *stream) { return (void)exec, (void)stream, NOT_SUPPORTED; }
