/* Error texts, one a thread. */
#include <ctype.h>
#include <stdarg.h>

#include "internal.h"

#ifndef QC_VERSION
#error "QC_VERSION is the version of the compiler, in quotes"
#endif

static _Thread_local char last_error[2048];

qc_status fail(qc_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  /* One line, whatever a file's name or TVM put into it. */
  for (char *c = last_error; *c; ++c)
    if (iscntrl((unsigned char)*c)) *c = ' ';
  return status;
}

qc_status out_of_memory(void) { return fail(QC_ERROR_MEMORY, "out of memory"); }

const char *qc_error(void) { return last_error; }

const char *qc_version(void) { return QC_VERSION; }

const char *qc_status_text(qc_status status) {
  switch (status) {
    case QC_OK: return "success";
    case QC_ERROR_ARGUMENT: return "argument is not allowed";
    case QC_ERROR_BUNDLE: return "bundle is missing, incomplete, damaged or of another format";
    case QC_ERROR_CPU: return "bundle is for another CPU";
    case QC_ERROR_CONFLICT: return "process has another version of TVM's runtime";
    case QC_ERROR_INPUT: return "buffers have the wrong number or sizes";
    case QC_ERROR_THREADS: return "worker threads cannot be set up";
    case QC_ERROR_MEMORY: return "out of memory";
    case QC_ERROR_RUNTIME: return "TVM's runtime failed";
    case QC_ERROR_GPU: return "bundle needs a GPU or a driver that is not there";
  }
  return "unknown status";
}
