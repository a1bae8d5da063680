// The PTX instructions that the kernels of targets/cuda use, one function each, named after them.
#define QC_DEVICE static __device__ __forceinline__

QC_DEVICE int ptx_dp4a_u32_s32(unsigned a, int b, int c) {
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

QC_DEVICE void ptx_ldmatrix_x4(unsigned* to, const void* shared) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

QC_DEVICE void ptx_mma_m8n8k16(int* c, unsigned a, int b) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a), "r"(b));
}

#if __CUDA_ARCH__ >= 800
QC_DEVICE void ptx_mma_m16n8k32(int* c, const unsigned* a, const int* b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

QC_DEVICE void ptx_cp_async_16(void* shared, const void* global) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

QC_DEVICE void ptx_cp_async_4(void* shared, const void* global) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global) : "memory");
}

QC_DEVICE void ptx_cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kept>
QC_DEVICE void ptx_cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kept) : "memory");
}
#endif
