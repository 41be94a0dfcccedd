// What the kernels of this folder take from an NVIDIA GPU.

using u32 = unsigned int;
using u16 = unsigned short;
using u8 = unsigned char;

// One block must fit a multiprocessor: asked for more, the compiler spills to loads ahead.
#define HAL_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define HAL_DEVICE static __device__ __forceinline__
#define HAL_SHARED __shared__

constexpr int WARP = 32;

HAL_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
HAL_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
HAL_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
HAL_DEVICE void synchronize() { __syncthreads(); }

struct alignas(16) Words {
  u32 word[4];
};

// Bytes that no one reads again: they leave L1 to x.
HAL_DEVICE Words load_streamed(const void* from) {
  Words to;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
               : "l"(from));
  return to;
}

HAL_DEVICE Words load_shared_by_blocks(const void* from) {
  Words to;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
               : "l"(from));
  return to;
}

HAL_DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }

HAL_DEVICE float add_over_warp(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

#if HAL_BFLOAT16
#define HAL_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"

HAL_DEVICE float to_float(u16 bits) { return float_of_bits(static_cast<u32>(bits) << 16); }

HAL_DEVICE u16 from_float(float value) {
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// a - b of both halves. There is no sub.bf16x2 before sm_90.
HAL_DEVICE u32 subtract_pairs(u32 a, u32 b) {
  u32 difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(difference)
      : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return difference;
}
#else
#define HAL_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"

HAL_DEVICE float to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

HAL_DEVICE u16 from_float(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

HAL_DEVICE u32 subtract_pairs(u32 a, u32 b) {
  u32 difference;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}
#endif

// sums += 16 rows by 16 columns, times 16 columns of 8 tokens.
HAL_DEVICE void multiply_16x8x16(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm(HAL_MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
