// What kernels/rtc/src takes from a GPU, on a CPU: every thread of a block is a fibre, and whatever
// the threads of a warp do together is done when all of them have come to it.
//
// It stands in for the header of a vendor. The header that says how lanes hold a tile is the vendor's
// own: its matrix instruction is done here in plain C++, registers laid out as its manual says. A
// warp whose threads do different things together, or a block whose threads do not all meet, ends
// the process with a message: a GPU would hang or compute nonsense.
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

using u32 = std::uint32_t;
using u16 = std::uint16_t;
using u8 = std::uint8_t;

#define HAL_KERNEL(threads) extern "C" void
#define HAL_DEVICE static inline
#define HAL_SHARED static

constexpr int WARP = HAL_WARP;

namespace emulation {

// What a thread waits for.
enum class Wait { nothing, warp, block, end };

struct Fiber {
  ucontext_t context;  // of its first step
  std::jmp_buf where;
  std::unique_ptr<char[]> stack;
  bool is_started = false;
  Wait wait = Wait::nothing;
  const char* meets = "";  // the same in all threads of a warp
};

constexpr std::size_t STACK_BYTES = 64 << 10;
constexpr int MOST_SHOWN = 64;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<u32> shown;  // MOST_SHOWN words of each thread
  std::jmp_buf scheduler;
  void (*body)();
  int current = 0, block_x = 0, block_y = 0;
};

inline Block block;

[[noreturn]] inline void fail(const char* what, const char* one, const char* other) {
  std::fprintf(stderr, "%s: %s and %s\n", what, one, other);
  std::abort();
}

inline void run_fiber() {
  block.body();
  block.fibers[block.current].wait = Wait::end;
  std::longjmp(block.scheduler, 1);
}

// Lets other threads run until all that meet here have come.
[[gnu::noinline]] inline void meet(Wait wait, const char* meets) {
  Fiber& fiber = block.fibers[block.current];
  fiber.wait = wait;
  fiber.meets = meets;
  if (_setjmp(fiber.where) == 0) {
    std::longjmp(block.scheduler, 1);
  }
}

[[gnu::noinline]] inline void step(int thread) {
  Fiber& fiber = block.fibers[thread];
  block.current = thread;
  fiber.wait = Wait::nothing;
  if (_setjmp(block.scheduler) != 0) {
    return;
  }
  if (fiber.is_started) {
    std::longjmp(fiber.where, 1);
  }
  fiber.is_started = true;
  setcontext(&fiber.context);
}

// Runs a warp until its threads wait for the block or are done.
inline void run_warp(int first) {
  const Fiber& leader = block.fibers[first];
  do {
    for (int lane = 0; lane < WARP; ++lane) {
      step(first + lane);
    }
    for (int lane = 1; lane < WARP; ++lane) {
      const Fiber& other = block.fibers[first + lane];
      if (other.wait != leader.wait || std::strcmp(other.meets, leader.meets) != 0) {
        fail("threads of a warp do different things", leader.meets, other.meets);
      }
    }
  } while (leader.wait == Wait::warp);
}

inline void run_block(int num_threads) {
  for (Fiber& fiber : block.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, STACK_BYTES};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.is_started = false;
    fiber.meets = "";
  }
  const Fiber& leader = block.fibers[0];
  do {
    for (int first = 0; first < num_threads; first += WARP) {
      run_warp(first);
    }
    for (const Fiber& other : block.fibers) {
      if (other.wait != leader.wait) {
        fail("threads of a block do not meet", leader.meets, other.meets);
      }
    }
  } while (leader.wait != Wait::end);
}

inline void run_grid(int grid_x, int grid_y, int num_threads, void (*body)()) {
  block.body = body;
  block.fibers.resize(num_threads);
  block.shown.resize(num_threads * MOST_SHOWN);
  for (Fiber& fiber : block.fibers) {
    fiber.stack = std::make_unique<char[]>(STACK_BYTES);
  }
  for (block.block_y = 0; block.block_y < grid_y; ++block.block_y) {
    for (block.block_x = 0; block.block_x < grid_x; ++block.block_x) {
      run_block(num_threads);
    }
  }
}

// Every thread of a warp shows words to the others of it.
template <int N>
void show(const u32 (&words)[N], const char* what) {
  static_assert(N <= MOST_SHOWN);
  std::memcpy(&block.shown[block.current * MOST_SHOWN], words, sizeof(words));
  meet(Wait::warp, what);
}

// One of those that `lane` shows, as a float.
inline float shown(int lane, int i) {
  float value;
  const int thread = block.current / WARP * WARP + lane;
  std::memcpy(&value, &block.shown[thread * MOST_SHOWN + i], sizeof(value));
  return value;
}

}  // namespace emulation

HAL_DEVICE int thread_index() { return emulation::block.current; }
HAL_DEVICE int block_x() { return emulation::block.block_x; }
HAL_DEVICE int block_y() { return emulation::block.block_y; }
HAL_DEVICE void synchronize() { emulation::meet(emulation::Wait::block, "synchronize"); }

struct alignas(16) Words {
  u32 word[4];
};

HAL_DEVICE Words load_streamed(const void* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    emulation::fail("a load of 16 bytes is not aligned", "load", "address");
  }
  return *static_cast<const Words*>(from);
}

HAL_DEVICE Words load_shared_by_blocks(const void* from) { return load_streamed(from); }

HAL_DEVICE float float_of_bits(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

HAL_DEVICE u32 bits_of_float(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

HAL_DEVICE float add_over_warp(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) {
    emulation::show({bits_of_float(value)}, "add_over_warp");
    const float other = emulation::shown(thread_index() % WARP ^ step, 0);
    emulation::meet(emulation::Wait::warp, "add_over_warp, read");
    value += other;
  }
  return value;
}

#if HAL_BFLOAT16
HAL_DEVICE float to_float(u16 bits) { return float_of_bits(static_cast<u32>(bits) << 16); }

// To nearest even; NaN stays NaN.
HAL_DEVICE u16 from_float(float value) {
  const u32 bits = bits_of_float(value);
  if (value != value) {
    return 0x7fff;
  }
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
HAL_DEVICE float to_float(u16 bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

HAL_DEVICE u16 from_float(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  u16 bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}
#endif

HAL_DEVICE u32 subtract_pairs(u32 a, u32 b) {
  const u16 low = from_float(to_float(a & 0xffff) - to_float(b & 0xffff));
  const u16 high = from_float(to_float(a >> 16) - to_float(b >> 16));
  return low | static_cast<u32>(high) << 16;
}

namespace emulation {

// Every thread shows what its registers of two values hold, as floats.
template <int N>
void show_pairs(const u32 (&registers)[N], const char* what) {
  u32 values[2 * N];
  for (int i = 0; i < 2 * N; ++i) {
    values[i] = bits_of_float(to_float(static_cast<u16>(registers[i / 2] >> i % 2 * 16)));
  }
  show(values, what);
}

}  // namespace emulation

// PTX ISA, mma.m16n8k16: with g = lane / 4 and t = lane % 4, A's registers are rows g, g + 8, g,
// g + 8 of columns 2t, 2t, 2t + 8, 2t + 8, B's are rows 2t and 2t + 8 of column g, and the sums are
// columns 2t and 2t + 1 of rows g and g + 8.
HAL_DEVICE void multiply_16x8x16(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  emulation::show_pairs({a0, a1, a2, a3, b0, b1}, "multiply_16x8x16");
  const int lane = thread_index() % WARP;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, token = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2, of_a = row / 8 + k / 8 * 2, of_b = 4 + k / 8;
      sums[i] += emulation::shown(row % 8 * 4 + t, of_a * 2 + k % 2) *
                 emulation::shown(token * 4 + t, of_b * 2 + k % 2);
    }
  }
  emulation::meet(emulation::Wait::warp, "multiply_16x8x16, read");
}

namespace emulation {

// sums[i] += token_of(i) by the lane's row, whose values the lanes of a column hold in runs of RUN.
template <int RUN, int SUMS, int PAIRS, class TokenOf>
void multiply_rows(float (&sums)[SUMS], const u32 (&x)[PAIRS], const u32 (&weight)[PAIRS],
                   TokenOf token_of) {
  static_assert(RUN <= 2 * PAIRS);
  u32 registers[2 * PAIRS];
  std::memcpy(registers, x, sizeof(x));
  std::memcpy(registers + PAIRS, weight, sizeof(weight));
  show_pairs(registers, "multiply_16x16x16");
  const int lane = thread_index() % WARP;
  for (int i = 0; i < SUMS; ++i) {
    for (int k = 0; k < 16; ++k) {
      // Where a lane holds all 16, those of its own half of the wavefront.
      const int column = RUN == 16 ? lane / 16 * 16 : k / RUN * 16;
      sums[i] += shown(column + token_of(i), k % RUN) *
                 shown(column + lane % 16, 2 * PAIRS + k % RUN);
    }
  }
  meet(Wait::warp, "multiply_16x16x16, read");
}

}  // namespace emulation

// CDNA, V_MFMA_F32_16X16X16: lane l holds columns 4 (l / 16) .. + 3 of row l % 16 of A and of column
// l % 16 of B, and sums of rows 4 (l / 16) .. + 3.
HAL_DEVICE void multiply_16x16x16(float (&sums)[4], const u32 (&x)[2], const u32 (&weight)[2]) {
  const int first = thread_index() % WARP / 16 * 4;
  emulation::multiply_rows<4>(sums, x, weight, [first](int i) { return first + i; });
}

// RDNA 3, V_WMMA_F32_16X16X16: both halves of a wavefront hold all of A and B, and sums of the even
// and of the odd rows.
HAL_DEVICE void multiply_16x16x16(float (&sums)[8], const u32 (&x)[8], const u32 (&weight)[8]) {
  const int half = thread_index() % WARP / 16;
  emulation::multiply_rows<16>(sums, x, weight, [half](int i) { return i * 2 + half; });
}

// RDNA 4: halves hold columns 0 .. 7 and 8 .. 15 of A and B, and sums of rows 0 .. 7 and 8 .. 15.
HAL_DEVICE void multiply_16x16x16(float (&sums)[8], const u32 (&x)[4], const u32 (&weight)[4]) {
  const int first = thread_index() % WARP / 16 * 8;
  emulation::multiply_rows<8>(sums, x, weight, [first](int i) { return first + i; });
}

namespace emulation {

constexpr int MOST_ARGUMENTS = 12;
inline long long arguments[MOST_ARGUMENTS];
inline void (*kernel)(long long, long long, long long, long long, long long, long long, long long,
                      long long, long long, long long, long long, long long);

inline void call_kernel() {
  const long long* a = arguments;
  kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
}

}  // namespace emulation

// A launch. Pointers and 32-bit integers are passed alike, in 64 bits, and kernels leave those that
// they do not have.
extern "C" void launch(void* kernel, int grid_x, int grid_y, int num_threads,
                       const long long* arguments, int num_arguments) {
  if (num_arguments > emulation::MOST_ARGUMENTS) {
    emulation::fail("a kernel has too many arguments", "most is", "12");
  }
  std::memcpy(emulation::arguments, arguments, sizeof(*arguments) * num_arguments);
  emulation::kernel = reinterpret_cast<decltype(emulation::kernel)>(kernel);
  emulation::run_grid(grid_x, grid_y, num_threads, emulation::call_kernel);
}
