/* Writes the digest of standard input, fed in steps of the size of the first argument: this CPU's way and the portable. */
#include <stdlib.h>

#include "sha256.c"

static void digest(const uint8_t *data, size_t size, size_t step, char hex[DIGEST_HEX + 1]) {
  sha256_context context;
  sha256_init(&context);
  for (size_t at = 0; at < size; at += step) sha256_update(&context, data + at, size - at < step ? size - at : step);
  sha256_hex(&context, hex);
}

int main(int argc, char **argv) {
  static uint8_t data[1 << 20];
  const size_t size = fread(data, 1, sizeof data, stdin), step = argc > 1 ? (size_t)atol(argv[1]) : 64;
  char hex[DIGEST_HEX + 1];
  for (size_t length = 0; length <= size; length += length < 200 ? 1 : 10007) {
    digest(data, length, step, hex);
    puts(hex);
  }
  /* The same through the portable function alone. */
  static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint32_t one[8], other[8];
  memcpy(one, start, sizeof one);
  memcpy(other, start, sizeof other);
  portable_blocks(one, data, size / 64);
  best()(other, data, size / 64);
  return memcmp(one, other, sizeof one) != 0;
}
