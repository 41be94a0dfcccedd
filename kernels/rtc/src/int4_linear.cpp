// out = x @ weight.T (+ bias): int4 codes under bfloat16 scales, x and out in 16 bits.
//
// A block makes ROW_TILES tiles of 16 rows for TOKEN_TILES tiles of tokens. Its warps divide the
// columns, 128 at a time. Codes are stored in the order in which lanes of the matrix instruction
// hold them (tiles.py), so that a lane loads 16 bytes that are all its own, and each warp reads
// columns of x that no other warp of the block does: nothing goes through shared memory but the
// warps' sums. A product of codes with x is exact, sums of 32 columns are scaled in float32.
//
// Source: the offline order of Marlin (Frantar et al. 2024), weights as the rows of the instruction.
//
// HAL_GROUP: columns under one scale. HAL_ZEROS: whether a group has a zero point.

constexpr int THREADS = HAL_THREADS;
constexpr int WARPS = THREADS / WARP;
constexpr int TILE_ROWS = 16;
constexpr int CHUNK = 128;  // columns
constexpr int SLABS = 4;    // of 32 columns, of a chunk
constexpr int GROUPS = CHUNK / HAL_GROUP;
constexpr int SLAB_WORDS = LANE_ROWS * LANE_PIECES;  // of one lane, 8 codes each
constexpr int LOADS = SLABS * SLAB_WORDS / 4;
constexpr u32 SYMMETRIC_ZERO = 8;

// A code c under these bits is 128 + c in bfloat16, 1024 + c in float16.
constexpr u32 RAISED = HAL_BFLOAT16 ? 0x43004300u : 0x64006400u;

struct Weight {
  const u8* codes;
  const u16* scales;
  const u8* zeros;
};

struct Shape {
  int num_tokens;
  int in_features;
  int out_features;
};

// The scales or zeros of a lane's rows, group after group.
template <class T>
struct alignas(sizeof(T) * LANE_ROWS * GROUPS) PerGroup {
  T of[LANE_ROWS * GROUPS];
};

// Of a tile of rows: 128 columns as one lane holds them.
struct Chunk {
  Words codes[LOADS];
  PerGroup<u16> scales;
  PerGroup<u8> zeros;
};

HAL_DEVICE void load_chunk(Chunk& chunk, const Weight& weight, int index, int lane) {
  const u8* codes = weight.codes + static_cast<long long>(index) * (TILE_ROWS * CHUNK / 2);
#pragma unroll
  for (int i = 0; i < LOADS; ++i) {
    chunk.codes[i] = load_streamed(codes + (i * CODE_LANES + lane % CODE_LANES) * 16);
  }
  // Rows of a lane stand side by side there.
  const long long place = static_cast<long long>(index) * (TILE_ROWS / LANE_ROWS) + row_of(lane, 0);
  chunk.scales = reinterpret_cast<const PerGroup<u16>*>(weight.scales)[place];
  if (HAL_ZEROS) {
    chunk.zeros = reinterpret_cast<const PerGroup<u8>*>(weight.zeros)[place];
  }
}

HAL_DEVICE int group_of(int row, int slab) { return row * GROUPS + slab * 32 / HAL_GROUP; }

// Eight codes: columns 2i and 2i + 1 are nibbles i and i + 4.
HAL_DEVICE void decode(u32 word, u32 zero, u32 (&pairs)[4]) {
  const u32 offset = RAISED | zero * 0x00010001u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = subtract_pairs((word >> (4 * i) & 0x000f000fu) | RAISED, offset);
  }
}

HAL_DEVICE void decode_slab(const Chunk& chunk, int slab, u32 (&weight)[LANE_ROWS][LANE_PIECES][4]) {
#pragma unroll
  for (int i = 0; i < SLAB_WORDS; ++i) {
    const int word = slab * SLAB_WORDS + i;
    const int row = i / LANE_PIECES;
    const u32 zero = HAL_ZEROS ? chunk.zeros.of[group_of(row, slab)] : SYMMETRIC_ZERO;
    decode(chunk.codes[word / 4].word[word % 4], zero, weight[row][i % LANE_PIECES]);
  }
}

template <int TOKEN_TILES>
struct Tokens {
  Words x[TOKEN_TILES][LANE_PIECES];
};

// 32 columns from `column` on; zeros behind the last token and the last column.
template <int TOKEN_TILES>
HAL_DEVICE void load_tokens(Tokens<TOKEN_TILES>& to, const u16* x, const Shape& shape, int column,
                            int lane) {
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; ++t) {
    const int token = (block_y() * TOKEN_TILES + t) * TILE_TOKENS + token_of_x(lane);
#pragma unroll
    for (int i = 0; i < LANE_PIECES; ++i) {
      const int first = column + 8 * piece_of(lane, i);
      to.x[t][i] = Words{};
      if (token < shape.num_tokens && first < shape.in_features) {
        const long long row = static_cast<long long>(token) * shape.in_features;
        to.x[t][i] = load_shared_by_blocks(x + row + first);
      }
    }
  }
}

template <int TOKEN_TILES>
using Sums = float[TOKEN_TILES][LANE_ROWS * LANE_TOKENS];

// sums += 32 columns of a tile of rows, times all tokens.
template <int TOKEN_TILES>
HAL_DEVICE void multiply_slab(Sums<TOKEN_TILES>& sums, const Chunk& chunk, int slab,
                              const Tokens<TOKEN_TILES>& tokens) {
  u32 weight[LANE_ROWS][LANE_PIECES][4];
  decode_slab(chunk, slab, weight);
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; ++t) {
    float products[LANE_ROWS * LANE_TOKENS] = {};
    multiply_32(products, weight, tokens.x[t]);
#pragma unroll
    for (int i = 0; i < LANE_ROWS * LANE_TOKENS; ++i) {
      const u32 scale = chunk.scales.of[group_of(i / LANE_TOKENS, slab)];
      sums[t][i] += float_of_bits(scale << 16) * products[i];
    }
  }
}

// The sums of all warps, one tile of tokens after the other, in the order of the warps.
template <int TOKEN_TILES, int ROW_TILES>
HAL_DEVICE void write_sums(const Sums<TOKEN_TILES> (&sums)[ROW_TILES], const u16* bias, u16* out,
                           const Shape& shape, int first_row) {
  constexpr int ROWS = ROW_TILES * TILE_ROWS;
  constexpr int STRIDE = ROWS + 4;  // lanes of a warp then write to banks of their own
  HAL_SHARED float partial[WARPS][TILE_TOKENS][STRIDE];
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; ++t) {
#pragma unroll
    for (int i = 0; i < ROW_TILES * LANE_ROWS * LANE_TOKENS; ++i) {
      const int tile = i / (LANE_ROWS * LANE_TOKENS), row = i / LANE_TOKENS % LANE_ROWS;
      const int token = i % LANE_TOKENS;
      partial[warp][token_of_sum(lane, token)][tile * TILE_ROWS + row_of(lane, row)] =
          sums[tile][t][i % (LANE_ROWS * LANE_TOKENS)];
    }
    synchronize();
    for (int i = thread_index(); i < ROWS * TILE_TOKENS; i += THREADS) {
      const int row = first_row + i % ROWS;
      const int token = (block_y() * TOKEN_TILES + t) * TILE_TOKENS + i / ROWS;
      if (row < shape.out_features && token < shape.num_tokens) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; ++w) {
          total += partial[w][i / ROWS][i % ROWS];
        }
        total += bias == nullptr ? 0.0f : to_float(bias[row]);
        out[static_cast<long long>(token) * shape.out_features + row] = from_float(total);
      }
    }
    synchronize();
  }
}

template <int TOKEN_TILES, int ROW_TILES>
HAL_DEVICE void multiply_block(const Weight& weight, const u16* x, const u16* bias, u16* out,
                               const Shape& shape) {
  // Slabs that x is loaded ahead: the fewer tokens, the less there is to do while it comes.
  constexpr int HELD = TOKEN_TILES * LANE_PIECES;
  constexpr int AHEAD = HELD < SLABS ? SLABS / HELD : 1;
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
  const int num_chunks = (shape.in_features + CHUNK - 1) / CHUNK;
  const int last_tile = (shape.out_features - 1) / TILE_ROWS;
  int first_chunk[ROW_TILES];  // of each tile; tiles behind the last are read and not written
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
    const int tile = block_x() * ROW_TILES + r;
    first_chunk[r] = (tile < last_tile ? tile : last_tile) * num_chunks;
  }
  Sums<TOKEN_TILES> sums[ROW_TILES] = {};
  Chunk now[ROW_TILES];
  Tokens<TOKEN_TILES> tokens[AHEAD];
  if (warp < num_chunks) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
      load_chunk(now[r], weight, first_chunk[r] + warp, lane);
    }
#pragma unroll
    for (int s = 0; s < AHEAD; ++s) {
      load_tokens(tokens[s], x, shape, warp * CHUNK + s * 32, lane);
    }
  }
  for (int chunk = warp; chunk < num_chunks; chunk += WARPS) {
    const int next_chunk = chunk + WARPS;
    Chunk next[ROW_TILES] = {};
    if (next_chunk < num_chunks) {
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        load_chunk(next[r], weight, first_chunk[r] + next_chunk, lane);
      }
    }
#pragma unroll
    for (int slab = 0; slab < SLABS; ++slab) {
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        multiply_slab<TOKEN_TILES>(sums[r], now[r], slab, tokens[slab % AHEAD]);
      }
      const int ahead = slab + AHEAD;
      const int column = (ahead < SLABS ? chunk : next_chunk) * CHUNK + ahead % SLABS * 32;
      load_tokens(tokens[slab % AHEAD], x, shape, column, lane);
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
      now[r] = next[r];
    }
  }
  write_sums<TOKEN_TILES, ROW_TILES>(sums, bias, out, shape, block_x() * ROW_TILES * TILE_ROWS);
}

#define HAL_MULTIPLY(token_tiles, row_tiles)                                                      \
  HAL_KERNEL(THREADS)                                                                             \
  multiply_t##token_tiles##_r##row_tiles(const u8* codes, const u16* scales, const u8* zeros,     \
                                         const u16* x, const u16* bias, u16* out, int num_tokens, \
                                         int in_features, int out_features) {                     \
    multiply_block<token_tiles, row_tiles>({codes, scales, zeros}, x, bias, out,                  \
                                           {num_tokens, in_features, out_features});              \
  }

// Few rows where a narrow weight would leave processors idle; more read x less often.
HAL_MULTIPLY(1, 1)
#if HAL_TOKEN_TILES >= 2
HAL_MULTIPLY(2, 1)
HAL_MULTIPLY(2, 2)
#endif
#if HAL_TOKEN_TILES >= 4
HAL_MULTIPLY(4, 1)
HAL_MULTIPLY(4, 2)
#endif
