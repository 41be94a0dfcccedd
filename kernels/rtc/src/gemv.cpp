// out = x @ weight.T (+ bias) for up to 4 tokens: weight, x and out in 16 bits.
//
// A warp makes HAL_ROWS rows: 16 bytes of each a lane at a time, x read once for all, products and
// sums in float32. No byte of the weight is used twice, so all that counts is how many are on their
// way: four loads of each row are.

constexpr int THREADS = HAL_THREADS;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = HAL_ROWS;
constexpr int VALUES = 8;  // of 16 bytes
constexpr int STEPS = 4;   // loads ahead of each row

HAL_DEVICE float low(u32 pair) { return to_float(static_cast<u16>(pair & 0xffff)); }
HAL_DEVICE float high(u32 pair) { return to_float(static_cast<u16>(pair >> 16)); }

template <int TOKENS>
HAL_DEVICE void add_products(float (&sums)[ROWS][TOKENS], const Words (&weight)[ROWS],
                             const u16* x, int in_features, int column) {
#pragma unroll
  for (int t = 0; t < TOKENS; ++t) {
    const Words values =
        load_shared_by_blocks(x + static_cast<long long>(t) * in_features + column);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[r][t] += low(weight[r].word[i]) * low(values.word[i]);
        sums[r][t] += high(weight[r].word[i]) * high(values.word[i]);
      }
    }
  }
}

template <int TOKENS>
HAL_DEVICE void multiply_rows(const u16* weight, const u16* x, const u16* bias, u16* out,
                              int in_features, int out_features) {
  const int lane = thread_index() % WARP;
  const int first_row = (block_x() * WARPS + thread_index() / WARP) * ROWS;
  const u16* rows[ROWS];  // the last one again behind it: read, not written
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = first_row + r < out_features ? first_row + r : out_features - 1;
    rows[r] = weight + static_cast<long long>(row) * in_features;
  }
  float sums[ROWS][TOKENS] = {};
  for (int first = lane * VALUES; first < in_features; first += STEPS * WARP * VALUES) {
    Words loaded[STEPS][ROWS] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      const int column = first + s * WARP * VALUES;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (column < in_features) {
          loaded[s][r] = load_streamed(rows[r] + column);
        }
      }
    }
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      const int column = first + s * WARP * VALUES;
      if (column < in_features) {
        add_products<TOKENS>(sums, loaded[s], x, in_features, column);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const float total = add_over_warp(sums[r][t]);
      const int row = first_row + r;
      if (lane == 0 && row < out_features) {
        const float shift = bias == nullptr ? 0.0f : to_float(bias[row]);
        out[static_cast<long long>(t) * out_features + row] = from_float(total + shift);
      }
    }
  }
}

#define HAL_MULTIPLY(tokens)                                                                  \
  HAL_KERNEL(THREADS)                                                                         \
  multiply_##tokens(const u16* weight, const u16* x, const u16* bias, u16* out,               \
                    int in_features, int out_features) {                                      \
    multiply_rows<tokens>(weight, x, bias, out, in_features, out_features);                   \
  }

HAL_MULTIPLY(1)
HAL_MULTIPLY(2)
HAL_MULTIPLY(3)
HAL_MULTIPLY(4)
