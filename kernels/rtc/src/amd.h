// What the kernels of this folder take from an AMD GPU: CDNA's wavefronts of 64, RDNA's of 32.
//
// Only what the compiler has built in: neither hiprtc nor a clang without ROCm needs a header.

using u32 = unsigned int;
using u16 = unsigned short;
using u8 = unsigned char;

#define HAL_DEVICE static __attribute__((device, always_inline)) inline
#define HAL_SHARED __attribute__((shared))
#define HAL_KERNEL(threads)                                                                 \
  extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads))) void

#if defined(__gfx90a__) || defined(__gfx942__)
constexpr int WARP = 64;
#else
constexpr int WARP = 32;
#endif

HAL_DEVICE int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
HAL_DEVICE int block_x() { return __builtin_amdgcn_workgroup_id_x(); }
HAL_DEVICE int block_y() { return __builtin_amdgcn_workgroup_id_y(); }

HAL_DEVICE void synchronize() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

struct alignas(16) Words {
  u32 word[4];
};

using Vector = u32 __attribute__((ext_vector_type(4)));
using Global = const Vector __attribute__((address_space(1)));

HAL_DEVICE Words words_of(Vector v) { return {{v.x, v.y, v.z, v.w}}; }

// Bytes that no one reads again.
HAL_DEVICE Words load_streamed(const void* from) {
  return words_of(__builtin_nontemporal_load((Global*)from));
}

HAL_DEVICE Words load_shared_by_blocks(const void* from) { return words_of(*(Global*)from); }

HAL_DEVICE float float_of_bits(u32 bits) { return __builtin_bit_cast(float, bits); }

HAL_DEVICE float add_over_warp(float value) {
  const int lane = thread_index() % WARP;
  for (int step = WARP / 2; step > 0; step /= 2) {
    const int bits = __builtin_bit_cast(int, value);
    value += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((lane ^ step) * 4, bits));
  }
  return value;
}

#if HAL_BFLOAT16
HAL_DEVICE float to_float(u16 bits) { return float_of_bits(static_cast<u32>(bits) << 16); }

// To nearest even, NaN stays NaN: gfx90a to gfx1201 have no instruction for it.
HAL_DEVICE u16 from_float(float value) {
  const u32 bits = __builtin_bit_cast(u32, value);
  return value != value ? 0x7fff : static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// a - b of both halves, where the differences are bfloat16: there is no instruction for pairs.
HAL_DEVICE u32 subtract_pairs(u32 a, u32 b) {
  const float low = float_of_bits(a << 16) - float_of_bits(b << 16);
  const float high = float_of_bits(a & 0xffff0000u) - float_of_bits(b & 0xffff0000u);
  return __builtin_amdgcn_perm(__builtin_bit_cast(u32, high), __builtin_bit_cast(u32, low),
                               0x07060302u);
}
#else
using Pair = _Float16 __attribute__((ext_vector_type(2)));

HAL_DEVICE float to_float(u16 bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}

HAL_DEVICE u16 from_float(float value) {
  return __builtin_bit_cast(u16, static_cast<_Float16>(value));
}

HAL_DEVICE u32 subtract_pairs(u32 a, u32 b) {
  return __builtin_bit_cast(u32, __builtin_bit_cast(Pair, a) - __builtin_bit_cast(Pair, b));
}
#endif

// sums[i] += 16 columns of tokens, the rows of the instruction, by rows of the weight, its columns.
#if HAL_BFLOAT16
using Value = short;
#else
using Value = _Float16;
#endif

template <int N>
using Values = Value __attribute__((ext_vector_type(N)));
using Four = float __attribute__((ext_vector_type(4)));
using Eight = float __attribute__((ext_vector_type(8)));

#if defined(__gfx90a__) || defined(__gfx942__)
HAL_DEVICE void multiply_16x16x16(float (&sums)[4], const u32 (&x)[2], const u32 (&weight)[2]) {
  const auto a = __builtin_bit_cast(Values<4>, x);
  const auto b = __builtin_bit_cast(Values<4>, weight);
  const Four before = __builtin_bit_cast(Four, sums);
#if HAL_BFLOAT16
  const Four after = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, before, 0, 0, 0);
#else
  const Four after = __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, before, 0, 0, 0);
#endif
  for (int i = 0; i < 4; ++i) {
    sums[i] = after[i];
  }
}
#elif defined(__GFX11__)
HAL_DEVICE void multiply_16x16x16(float (&sums)[8], const u32 (&x)[8], const u32 (&weight)[8]) {
  const auto a = __builtin_bit_cast(Values<16>, x);
  const auto b = __builtin_bit_cast(Values<16>, weight);
  const Eight before = __builtin_bit_cast(Eight, sums);
#if HAL_BFLOAT16
  const Eight after = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, before);
#else
  const Eight after = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, before);
#endif
  for (int i = 0; i < 8; ++i) {
    sums[i] = after[i];
  }
}
#else
HAL_DEVICE void multiply_16x16x16(float (&sums)[8], const u32 (&x)[4], const u32 (&weight)[4]) {
  const auto a = __builtin_bit_cast(Values<8>, x);
  const auto b = __builtin_bit_cast(Values<8>, weight);
  const Eight before = __builtin_bit_cast(Eight, sums);
#if HAL_BFLOAT16
  const Eight after = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(a, b, before);
#else
  const Eight after = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a, b, before);
#endif
  for (int i = 0; i < 8; ++i) {
    sums[i] = after[i];
  }
}
#endif
