/* What the GPU of this machine can do, as its driver tells, and whether it can run a bundle. */
#include <dlfcn.h>
#include <string.h>

#include "internal.h"

#define DRIVER "libcuda.so.1"

typedef int initialize(unsigned flags);
typedef int count_devices(int *count);
typedef int get_device(int *device, int number);
typedef int get_attribute(int *value, int attribute, int device);

static qc_status find(void *driver, const char *name, void *function) {
  void *symbol = dlsym(driver, name);
  if (!symbol) return fail(QC_ERROR_GPU, DRIVER " lacks the function %s; install an NVIDIA driver of version 580 or later", name);
  memcpy(function, &symbol, sizeof symbol);
  return QC_OK;
}

/* Compute capability of the first GPU, as 80 for 8.0. */
static qc_status read_capability(void *driver, int *capability) {
  enum { MAJOR = 75, MINOR = 76 }; /* the driver's numbers of its two parts */
  initialize *start;
  count_devices *count_all;
  get_device *get;
  get_attribute *ask;
  TRY(find(driver, "cuInit", &start));
  TRY(find(driver, "cuDeviceGetCount", &count_all));
  TRY(find(driver, "cuDeviceGet", &get));
  TRY(find(driver, "cuDeviceGetAttribute", &ask));
  int count = 0, device = 0, major = 0, minor = 0, error = start(0);
  if (!error) error = count_all(&count);
  if (error || !count)
    return fail(QC_ERROR_GPU, "the NVIDIA driver finds no GPU (its status is %d); look at what nvidia-smi says", error);
  error = get(&device, 0);
  if (!error) error = ask(&major, MAJOR, device);
  if (!error) error = ask(&minor, MINOR, device);
  if (error)
    return fail(QC_ERROR_GPU, "the NVIDIA driver does not tell what its GPU can do (its status is %d)", error);
  *capability = 10 * major + minor;
  return QC_OK;
}

qc_status check_gpu(const manifest *m) {
  if (!m->capability) return QC_OK;
  void *driver = dlopen(DRIVER, RTLD_NOW | RTLD_GLOBAL);
  if (!driver) return fail(QC_ERROR_GPU, "no NVIDIA driver: %s; install one of version 580 or later", dlerror());
  int capability = 0;
  TRY(read_capability(driver, &capability));
  if (capability < m->capability)
    return fail(QC_ERROR_GPU,
                "bundle for target %s needs a GPU of compute capability %d.%d or later, and this one has %d.%d; compile "
                "the model for it: qcompile targets",
                m->target.name, m->capability / 10, m->capability % 10, capability / 10, capability % 10);
  return QC_OK;
}
