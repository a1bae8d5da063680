/* Reads manifest.txt, the part of manifest.json that this runtime needs.
 *
 * A line is a keyword and fields with one space between them; in a field, bytes other than plain characters are
 * written as %XX. The first line names the format, the last is the SHA-256 of all before it.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"

#define FORMAT "qcompiler-bundle"
#define FORMAT_VERSION "4"
#define SIZE_LIMIT (16u << 20)

static qc_status malformed(const char *line_kind) {
  return fail(QC_ERROR_BUNDLE, MANIFEST_TEXT ": line '%s' is not as format " FORMAT_VERSION
              " has it; compile the model again", line_kind);
}

/* The next field of a line, with %XX decoded in place; NULL from the first empty one on. *rest moves on. */
static char *next_field(char **rest) {
  char *field = *rest;
  if (!field) return NULL;
  char *end = strchr(field, ' ');
  *rest = end ? end + 1 : NULL;
  if (end) *end = '\0';
  char *to = field;
  for (const char *from = field; *from; ++from) {
    if (*from == '%' && isxdigit((unsigned char)from[1]) && isxdigit((unsigned char)from[2])) {
      const char digits[] = {from[1], from[2], '\0'};
      *to++ = (char)strtoul(digits, NULL, 16);
      from += 2;
    } else {
      *to++ = *from;
    }
  }
  *to = '\0';
  if (*field) return field;
  return *rest = NULL;
}

/* Room for one more element of an array that doubles; NULL if out of memory. */
static void *grow(void *array, size_t count, size_t element) {
  bool full = (count & (count - 1)) == 0;
  return full ? realloc(array, (count ? 2 * count : 1) * element) : array;
}

static bool parse_dtype(const char *name, DLDataType *dtype) {
  static const struct {
    const char *prefix;
    uint8_t code;
  } kinds[] = {{"float", kDLFloat}, {"uint", kDLUInt}, {"int", kDLInt}, {"bfloat", kDLBfloat}};
  *dtype = (DLDataType){kDLBool, 8, 1};
  if (!strcmp(name, "bool")) return true;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
    size_t length = strlen(kinds[i].prefix);
    if (strncmp(name, kinds[i].prefix, length)) continue;
    char *end;
    unsigned long bits = strtoul(name + length, &end, 10);
    *dtype = (DLDataType){kinds[i].code, (uint8_t)bits, 1};
    return !*end && (bits == 8 || bits == 16 || bits == 32 || bits == 64);
  }
  return false;
}

/* Extents as 1,3,224,224, or - for none; and the size that they give. */
static qc_status parse_shape(char *text, tensor_spec *spec) {
  spec->size = spec->dtype.bits / 8;
  if (!strcmp(text, "-")) return QC_OK;
  for (char *at = text;; ++at) {
    char *end;
    errno = 0;
    long long extent = strtoll(at, &end, 10);
    int64_t *shape = grow(spec->shape, spec->ndim, sizeof *shape);
    if (!shape) return out_of_memory();
    spec->shape = shape;
    spec->shape[spec->ndim++] = extent;
    if (end == at || errno || extent < 0 || __builtin_mul_overflow(spec->size, (size_t)extent, &spec->size))
      return malformed("tensor");
    if (!*end) return QC_OK;
    if (*end != ',') return malformed("tensor");
    at = end;
  }
}

static tensor_spec *new_tensor(tensor_spec **specs, size_t *count) {
  tensor_spec *list = grow(*specs, *count, sizeof *list);
  if (!list) return NULL;
  *specs = list;
  list[*count] = (tensor_spec){0};
  return &list[(*count)++];
}

/* name dtype shape, and - or bits-of-the-scale:zero-point. The bits of a double do not depend on a locale. */
static qc_status parse_tensor(char *rest, tensor_spec **specs, size_t *count) {
  tensor_spec *spec = new_tensor(specs, count);
  if (!spec) return out_of_memory();
  spec->name = next_field(&rest);
  spec->dtype_name = next_field(&rest);
  char *shape = next_field(&rest);
  char *quantization = next_field(&rest);
  if (!quantization || rest || !parse_dtype(spec->dtype_name, &spec->dtype)) return malformed("tensor");
  TRY(parse_shape(shape, spec));
  spec->quantized = strcmp(quantization, "-") != 0;
  if (spec->quantized) {
    char *end;
    uint64_t bits = strtoull(quantization, &end, 16);
    memcpy(&spec->scale, &bits, sizeof bits);
    if (*end != ':') return malformed("tensor");
    spec->zero_point = (int32_t)strtol(end + 1, &end, 10);
    if (*end) return malformed("tensor");
  }
  return QC_OK;
}

/* dtype shape offset */
static qc_status parse_constant(char *rest, manifest *m) {
  tensor_spec *spec = new_tensor(&m->constants, &m->constant_count);
  if (!spec) return out_of_memory();
  spec->name = CONSTANTS;
  spec->dtype_name = next_field(&rest);
  char *shape = next_field(&rest);
  char *offset = next_field(&rest), *end;
  if (!offset || rest || !parse_dtype(spec->dtype_name, &spec->dtype)) return malformed("constant");
  TRY(parse_shape(shape, spec));
  spec->offset = strtoull(offset, &end, 10);
  return *end || spec->offset % ALIGNMENT ? malformed("constant") : QC_OK;
}

static qc_status parse_needs(char *rest, target_needs *needs) {
  if (needs->name) return malformed("target");
  needs->name = next_field(&rest);
  if (!needs->name) return malformed("target");
  while (rest) {
    char **features = grow(needs->features, needs->feature_count, sizeof *features);
    if (!features) return out_of_memory();
    needs->features = features;
    char *feature = next_field(&rest);
    if (!feature) return malformed("target");
    needs->features[needs->feature_count++] = feature;
  }
  return QC_OK;
}

static bool leaves_the_bundle(const char *path) {
  if (*path == '/') return true;
  for (const char *part = path; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL)
    if (!strncmp(part, "..", 2) && (part[2] == '/' || !part[2])) return true;
  return false;
}

static qc_status parse_file(char *rest, manifest *m) {
  file_entry *files = grow(m->files, m->file_count, sizeof *files);
  if (!files) return out_of_memory();
  m->files = files;
  const char *digest = next_field(&rest);
  char *path = next_field(&rest);
  if (!path || rest || strlen(digest) != DIGEST_HEX || leaves_the_bundle(path)) return malformed("file");
  file_entry *entry = &m->files[m->file_count++];
  entry->path = path;
  memcpy(entry->digest, digest, DIGEST_HEX + 1);
  return QC_OK;
}

static qc_status parse_line(char *line, manifest *m) {
  char *rest = line;
  const char *keyword = next_field(&rest);
  if (!keyword) return malformed("");
  if (!strcmp(keyword, "target")) return parse_needs(rest, &m->target);
  if (!strcmp(keyword, "input")) return parse_tensor(rest, &m->inputs, &m->input_count);
  if (!strcmp(keyword, "output")) return parse_tensor(rest, &m->outputs, &m->output_count);
  if (!strcmp(keyword, "constant")) return parse_constant(rest, m);
  if (!strcmp(keyword, "file")) return parse_file(rest, m);
  if (!strcmp(keyword, "family")) {
    m->family = next_field(&rest);
    return m->family ? QC_OK : malformed(keyword);
  }
  if (!strcmp(keyword, "gpu")) {
    const char *capability = next_field(&rest);
    m->capability = capability ? atoi(capability) : 0;
    return m->capability > 0 && !rest ? QC_OK : malformed(keyword);
  }
  if (!strcmp(keyword, "alternative")) {
    target_needs *list = grow(m->alternatives, m->alternative_count, sizeof *list);
    if (!list) return out_of_memory();
    m->alternatives = list;
    m->alternatives[m->alternative_count] = (target_needs){0};
    return parse_needs(rest, &m->alternatives[m->alternative_count++]);
  }
  return malformed(keyword);
}

/* Checks the last line, cuts it off, and leaves the lines before it. */
static qc_status check_digest(char *text, size_t size, const char *path) {
  const size_t last = strlen("sha256 ") + DIGEST_HEX + 1;
  char hex[DIGEST_HEX + 1], expected[sizeof "sha256 \n" + DIGEST_HEX];
  sha256_context context;
  sha256_init(&context);
  sha256_update(&context, text, size < last ? size : size - last);
  sha256_hex(&context, hex);
  snprintf(expected, sizeof expected, "sha256 %s\n", hex);
  if (size < last || memcmp(text + size - last, expected, last) || strlen(text) != size)
    return fail(QC_ERROR_BUNDLE, "%s is damaged (its last line is not the SHA-256 of the others); copy the bundle again",
                path);
  text[size - last] = '\0';
  return QC_OK;
}

/* The first line, before anything else: a file of another format may be anything. */
static qc_status check_format(const char *text, const char *path) {
  const size_t length = strlen(FORMAT " ");
  if (strncmp(text, FORMAT " ", length))
    return fail(QC_ERROR_BUNDLE, "%s is not the manifest of a qcompiler bundle, or it is damaged", path);
  size_t version = strcspn(text + length, "\n");
  if (version != strlen(FORMAT_VERSION) || strncmp(text + length, FORMAT_VERSION, version))
    return fail(QC_ERROR_BUNDLE,
                "bundle has format %.*s; this runtime reads format " FORMAT_VERSION
                "; use the runtime that is in the bundle, or compile the model again",
                version < 20 ? (int)version : 20, text + length);
  return QC_OK;
}

static qc_status parse(const char *path, size_t size, manifest *m) {
  TRY(check_format(m->text, path));
  TRY(check_digest(m->text, size, path));
  char *line = strchr(m->text, '\n');
  while (line && *++line) {
    char *end = strchr(line, '\n');
    if (end) *end = '\0';
    TRY(parse_line(line, m));
    line = end;
  }
  return m->target.name && m->family ? QC_OK : malformed("target");
}

qc_status manifest_read(const char *bundle, manifest *out) {
  struct stat info;
  if (stat(bundle, &info) != 0)
    return fail(QC_ERROR_BUNDLE, "bundle %s cannot be opened: %s; give the folder that 'qcompile compile' wrote",
                bundle, strerror(errno));
  if (!S_ISDIR(info.st_mode))
    return fail(QC_ERROR_BUNDLE, "bundle %s is a file; give the folder that 'qcompile compile' wrote", bundle);
  char *path = join_path(bundle, MANIFEST_TEXT);
  if (!path) return out_of_memory();
  size_t size = 0;
  qc_status status = read_text(path, SIZE_LIMIT, &out->text, &size);
  if (status == QC_OK) status = parse(path, size, out);
  free(path);
  return status;
}

void manifest_free(manifest *m) {
  for (size_t i = 0; i < m->input_count; ++i) free(m->inputs[i].shape);
  for (size_t i = 0; i < m->output_count; ++i) free(m->outputs[i].shape);
  for (size_t i = 0; i < m->constant_count; ++i) free(m->constants[i].shape);
  for (size_t i = 0; i < m->alternative_count; ++i) free(m->alternatives[i].features);
  free(m->target.features);
  free(m->alternatives);
  free(m->inputs);
  free(m->outputs);
  free(m->constants);
  free(m->files);
  free(m->text);
  *m = (manifest){0};
}

const file_entry *manifest_file(const manifest *m, const char *path) {
  for (size_t i = 0; i < m->file_count; ++i)
    if (!strcmp(m->files[i].path, path)) return &m->files[i];
  return NULL;
}
