/* libcuda.so.1 as far as TVM's runtime calls it. A module is a host library in which simulator.h is compiled. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500 };

/* The device's memory. The host reaches it while a kernel or a copy runs only, and is stopped by a fault elsewhere.
 * Nothing is used again after it was freed. */
static const size_t room = (size_t)4 << 30;
static char *memory;
static size_t used;

static void reach(int rights) {
  if (memory) mprotect(memory, (used + 4095) / 4096 * 4096, rights);
}

void simulated_open(void) { reach(PROT_READ | PROT_WRITE); }

void simulated_close(void) { reach(PROT_NONE); }

void *simulated_allocate(size_t bytes) {
  if (!memory) memory = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || bytes > room - used) return NULL;
  char *block = memory + used;
  used += (bytes / 256 + 1) * 256;
  simulated_open();
  memset(block, 0x5a, bytes);
  simulated_close();
  return block;
}

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void *stream, *attributes;
  unsigned attribute_count;
} launch_config;

typedef void launcher(void **arguments, const unsigned *grid, const unsigned *block);

int cuModuleLoadData(void **module, const void *image) {
  const Elf64_Ehdr *header = image;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return INVALID_IMAGE;
  const size_t size = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  int file = memfd_create("kernels", 0);
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  if (write(file, image, size) != (ssize_t)size) return INVALID_IMAGE;
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "%s\n", dlerror());
  return *module ? SUCCESS : INVALID_IMAGE;
}

int cuModuleUnload(void *module) { return module ? SUCCESS : INVALID_VALUE; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
  char symbol[512];
  snprintf(symbol, sizeof symbol, "launch_%s", name);
  *function = dlsym(module, symbol);
  return *function ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernelEx(const launch_config *config, void *function, void **arguments, void **extra) {
  (void)extra;
  for (int axis = 0; axis < 3; ++axis)
    if (!config->grid[axis] || !config->block[axis] || (axis && config->grid[axis] > 65535)) return INVALID_VALUE;
  if (config->block[0] * config->block[1] * config->block[2] > 1024) return INVALID_VALUE;
  simulated_open();
  ((launcher *)function)(arguments, config->grid, config->block);
  simulated_close();
  return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) { return (void)function, (void)attribute, (void)value, SUCCESS; }

int cuGetErrorName(int error, const char **text) { return (void)error, *text = "simulated error", SUCCESS; }

int cuGetErrorString(int error, const char **text) { return (void)error, *text = "simulated error", SUCCESS; }

int cuDeviceGetName(char *name, int size, int device) { return (void)device, snprintf(name, (size_t)size, "simulated"), SUCCESS; }

int cuTensorMapEncodeTiled(void) { return INVALID_VALUE; }

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return (void)flags, SUCCESS; }

int cuDeviceGetCount(int *count) { return *count = setting("QC_SIMULATED_DEVICES", 1), SUCCESS; }

int cuDeviceGet(int *device, int number) { return *device = number, SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  const int capability = setting("QC_SIMULATED_CAPABILITY", 80);
  switch (attribute) {
    case 13: *value = setting("QC_SIMULATED_KILOHERTZ", 1410000); break;
    case 16: *value = 108; break;
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    default: *value = 0;
  }
  return SUCCESS;
}
