/* Reads manifests of folders, whatever is in them, and says how each ended. */
#include "internal.h"

int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    manifest m = {0};
    qc_status status = manifest_read(argv[i], &m);
    printf("%d %s\n", (int)status, status == QC_OK ? "" : qc_error());
    manifest_free(&m);
  }
}
