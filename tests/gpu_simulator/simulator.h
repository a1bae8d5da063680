// Runs CUDA kernels on the CPU, thread by thread. It stands in place of targets/cuda/instructions.cuh.
//
// The threads of a block are fibers of one thread of the process; a fiber runs until it waits for others: at a barrier,
// or in an instruction of the whole warp, which the last lane to arrive executes for all. Blocks follow one another, and
// every other block starts its threads from the last, so that a missing barrier shows. Copies in the background land
// when they are waited for, not earlier; shared memory is filled with a pattern before each block.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("qc_shared")))
#define alignas(n) __attribute__((aligned(n)))
#define QC_DEVICE static inline

struct int4 {
  int x, y, z, w;
};
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace simulator {

struct dim {
  unsigned x, y, z;
};

struct copy {
  void* to;
  const void* from;
  int bytes;
};

struct fiber {
  ucontext_t start;
  jmp_buf at;
  std::vector<char> stack;
  bool started, done;
  dim place;
  int lane, warp;
  std::vector<std::vector<copy>> groups;  // of copies in the background; the last one is open
};

// What the lanes of a warp give to an instruction of the whole warp.
struct operands {
  void* to;
  const void *a, *b;
};

struct warp_state {
  int lanes = 0, arrived = 0;
  unsigned generation = 0;
  operands given[32];
};

inline fiber* current;
inline jmp_buf scheduler;
inline std::vector<fiber> fibers;
inline std::vector<warp_state> warps;
inline int alive, at_barrier;
inline unsigned barriers;
inline dim grid_size, block_size, block_place;
inline const std::function<void()>* kernel;

extern "C" char __start_qc_shared[] __attribute__((weak));
extern "C" char __stop_qc_shared[] __attribute__((weak));

[[noreturn]] inline void fault(const char* what) {
  fprintf(stderr, "simulated GPU: %s\n", what);
  abort();
}

inline void yield() {
  if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

inline void body() {
  (*kernel)();
  current->done = true;
  --alive;
  _longjmp(scheduler, 1);
}

inline void resume(fiber& f) {
  current = &f;
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.at, 1);
  f.started = true;
  setcontext(&f.start);
}

inline void barrier() {
  const unsigned before = barriers;
  if (++at_barrier == (int)fibers.size()) {
    at_barrier = 0;
    ++barriers;
  }
  while (barriers == before) yield();
}

// An instruction of the whole warp: `execute` gets what all lanes gave.
template <class Execute>
void together(operands mine, Execute execute) {
  warp_state& w = warps[current->warp];
  w.given[current->lane] = mine;
  const unsigned before = w.generation;
  if (++w.arrived == w.lanes) {
    if (w.lanes != 32) fault("an instruction of the whole warp in a warp of fewer lanes");
    execute(w.given);
    w.arrived = 0;
    ++w.generation;
  }
  while (w.generation == before) yield();
}

inline void run_block(bool from_last) {
  const int count = block_size.x * block_size.y * block_size.z;
  for (char* p = __start_qc_shared; p != __stop_qc_shared; ++p) *p = (char)0xa5;
  fibers.resize(count);
  warps.assign((count + 31) / 32, {});
  alive = count;
  at_barrier = 0;
  for (int i = 0; i < count; ++i) {
    fiber& f = fibers[i];
    f.stack.resize(1 << 16);
    f.started = f.done = false;
    f.place = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    f.lane = i % 32;
    f.warp = i / 32;
    f.groups.assign(1, {});
    ++warps[f.warp].lanes;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.data();
    f.start.uc_stack.ss_size = f.stack.size();
    makecontext(&f.start, body, 0);
  }
  // A thread that has ended reaches no barrier any more, so a block of which some have and others wait stands still.
  for (int rounds = 0; alive; ++rounds) {
    const int before = alive;
    const unsigned barriers_before = barriers;
    unsigned generations = 0, generations_after = 0;
    for (auto& w : warps) generations += w.generation;
    for (int k = 0; k < count; ++k) {
      fiber& f = fibers[from_last ? count - 1 - k : k];
      if (!f.done) resume(f);
    }
    for (auto& w : warps) generations_after += w.generation;
    if (alive == before && barriers == barriers_before && generations == generations_after)
      fault("the threads of a block wait for one another");
  }
}

template <class... Arguments>
void launch(void (*function)(Arguments...), void** arguments, dim grid, dim block) {
  grid_size = grid;
  block_size = block;
  const std::function<void()> call = [&] {
    [&]<size_t... k>(std::index_sequence<k...>) {
      function(*static_cast<std::remove_reference_t<Arguments>*>(arguments[k])...);
    }(std::index_sequence_for<Arguments...>());
  };
  kernel = &call;
  unsigned number = 0;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_place = {x, y, z};
        run_block(number++ % 2);
      }
}

inline int of_bytes(uint32_t word, int k, bool is_signed) {
  const uint8_t byte = word >> (8 * k);
  return is_signed ? (int8_t)byte : byte;
}

inline int dot4(uint32_t a, uint32_t b) {
  int sum = 0;
  for (int k = 0; k < 4; ++k) sum += of_bytes(a, k, false) * of_bytes(b, k, true);
  return sum;
}

}  // namespace simulator

#define threadIdx (simulator::current->place)
#define blockIdx (simulator::block_place)
#define __syncthreads simulator::barrier

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
template <class T> requires(sizeof(T) == 1) static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> requires(sizeof(T) == 1) static inline T max(T a, T b) { return a > b ? a : b; }

static inline int __float2int_rn(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x < -2147483648.0f) return INT32_MIN;
  return (int)nearbyintf(x);
}

static inline int __shfl_xor_sync(unsigned mask, int value, int distance) {
  int result = 0;
  if (mask != 0xffffffffu) simulator::fault("__shfl_xor_sync of a part of a warp");
  simulator::operands mine = {&result, &value, &distance};
  simulator::together(mine, [](simulator::operands* lanes) {
    for (int l = 0; l < 32; ++l)
      *(int*)lanes[l].to = *(const int*)lanes[l ^ *(const int*)lanes[l].b].a;
  });
  return result;
}

QC_DEVICE int ptx_dp4a_u32_s32(unsigned a, int b, int c) { return c + simulator::dot4(a, b); }

// Lane l gives the address of row l % 8 of matrix l / 8, and gets bytes 4 * (l % 4)... of row l / 4 of every matrix.
QC_DEVICE void ptx_ldmatrix_x4(unsigned* to, const void* shared) {
  if ((uintptr_t)shared % 16) simulator::fault("ldmatrix from an address that is no multiple of 16");
  simulator::together({to, shared, nullptr}, [](simulator::operands* lanes) {
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m)
        memcpy((unsigned*)lanes[l].to + m, (const char*)lanes[8 * m + l / 4].a + 4 * (l % 4), 4);
  });
}

// The registers of lane l: of a row l / 4 and words l % 4; of b column l / 4 and words l % 4; of c row l / 4 and
// columns 2 * (l % 4) and the next.
QC_DEVICE void ptx_mma_m8n8k16(int* c, unsigned a, int b) {
  simulator::together({c, &a, &b}, [](simulator::operands* lanes) {
    for (int l = 0; l < 32; ++l)
      for (int e = 0; e < 2; ++e)
        for (int w = 0; w < 4; ++w)
          ((int*)lanes[l].to)[e] += simulator::dot4(*(const unsigned*)lanes[l / 4 * 4 + w].a,
                                                    *(const unsigned*)lanes[(2 * (l % 4) + e) * 4 + w].b);
  });
}

#if __CUDA_ARCH__ >= 800
// As above; a[1], a[3], c[2], c[3] are eight rows further down, a[2], a[3], b[1] 16 bytes of k further on.
QC_DEVICE void ptx_mma_m16n8k32(int* c, const unsigned* a, const int* b) {
  simulator::together({c, a, b}, [](simulator::operands* lanes) {
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r)
        for (int k = 0; k < 8; ++k)
          ((int*)lanes[l].to)[r] +=
              simulator::dot4(((const unsigned*)lanes[l / 4 * 4 + k % 4].a)[r / 2 + 2 * (k / 4)],
                              ((const unsigned*)lanes[(2 * (l % 4) + r % 2) * 4 + k % 4].b)[k / 4]);
  });
}

static inline void start_copy(void* to, const void* from, int bytes) {
  if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) simulator::fault("cp.async of unaligned addresses");
  simulator::current->groups.back().push_back({to, from, bytes});
}

QC_DEVICE void ptx_cp_async_16(void* shared, const void* global) { start_copy(shared, global, 16); }
QC_DEVICE void ptx_cp_async_4(void* shared, const void* global) { start_copy(shared, global, 4); }
QC_DEVICE void ptx_cp_async_commit_group() { simulator::current->groups.emplace_back(); }

template <int kept>
QC_DEVICE void ptx_cp_async_wait_group() {
  auto& groups = simulator::current->groups;
  while ((int)groups.size() - 1 > kept) {
    for (const auto& c : groups.front()) memcpy(c.to, c.from, c.bytes);
    groups.erase(groups.begin());
  }
}
#endif
