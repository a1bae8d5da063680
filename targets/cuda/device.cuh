// The functions that the kernels of targets/cuda call. Activations are u8, weights s8. A register of a fragment holds
// four bytes, the first in its low bits.

QC_DEVICE int qc_dp4a(unsigned a, int b, int c) { return ptx_dp4a_u32_s32(a, b, c); }

// c[16x8] += a[16x32] * b[32x8] on the tensor cores, spread over a warp as mma.m16n8k32 prescribes. Four m8n8k16 take
// the same fragments: a[0], a[2] are rows 0 to 7, a[1], a[3] rows 8 to 15; a[2], a[3], b[1] are the second half of k.
QC_DEVICE void qc_mma(int* c, const unsigned* a, const int* b) {
#if __CUDA_ARCH__ >= 800
  ptx_mma_m16n8k32(c, a, b);
#else
  for (int k = 0; k < 2; ++k) {
    ptx_mma_m8n8k16(c, a[2 * k], b[k]);
    ptx_mma_m8n8k16(c + 2, a[2 * k + 1], b[k]);
  }
#endif
}

// The fragment a of 16 rows and 32 bytes of k from shared memory; each lane gives the address of 16 bytes: lanes 0 to
// 15 those of the rows' first half, lanes 16 to 31 of their second.
QC_DEVICE void qc_load_rows(unsigned* a, const void* shared) { ptx_ldmatrix_x4(a, shared); }

// Four words from an address that is a multiple of 16.
QC_DEVICE void qc_load_words(int* to, const void* from) {
  int4 words = *static_cast<const int4*>(from);
  to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

QC_DEVICE void qc_store_words(int* to, int a, int b, int c, int d) { *reinterpret_cast<int4*>(to) = make_int4(a, b, c, d); }

// Copies 16 or 4 bytes from global to shared memory: in the background where the chip can, until the group that
// qc_commit closes is waited for.
QC_DEVICE void qc_copy16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_16(shared, global);
#else
  *static_cast<int4*>(shared) = *static_cast<const int4*>(global);
#endif
}

QC_DEVICE void qc_copy4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_4(shared, global);
#else
  *static_cast<int*>(shared) = *static_cast<const int*>(global);
#endif
}

// Writes one word into 16 or 4 bytes of shared memory.
QC_DEVICE void qc_fill16(void* shared, int word) { *static_cast<int4*>(shared) = make_int4(word, word, word, word); }

QC_DEVICE void qc_fill4(void* shared, int word) { *static_cast<int*>(shared) = word; }

QC_DEVICE void qc_commit() {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_commit_group();
#endif
}

// Waits for all groups but the last 0, 1 or 2.
QC_DEVICE void qc_wait0() {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_wait_group<0>();
#endif
}

QC_DEVICE void qc_wait1() {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_wait_group<1>();
#endif
}

QC_DEVICE void qc_wait2() {
#if __CUDA_ARCH__ >= 800
  ptx_cp_async_wait_group<2>();
#endif
}

// The sum of a value over the 32 lanes of a warp.
QC_DEVICE int qc_warp_sum(int value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
