// How lanes hold a tile of 16 rows by 32 columns of the weight, by 8 tokens, for mma.sync.
//
// Lane l holds rows l / 4 and l / 4 + 8, columns 8 (l % 4) .. + 7: not those that the instruction
// calls its own, but both of its operands are permuted alike, and so both load 16 bytes at once.
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16".

#define HAL_TOKEN_TILES 4  // of a block, at most: more would not fit its registers

constexpr int TILE_TOKENS = 8;
constexpr int CODE_LANES = 32;  // lanes of a warp that hold codes of their own
constexpr int LANE_ROWS = 2;    // rows of a tile whose codes, and whose sums, a lane holds
constexpr int LANE_PIECES = 1;  // runs of 8 columns, of the four of 32 columns, that it holds
constexpr int LANE_TOKENS = 2;  // tokens of a tile whose sums it holds

HAL_DEVICE int row_of(int lane, int i) { return lane / 4 + 8 * i; }
HAL_DEVICE int piece_of(int lane, int) { return lane % 4; }
HAL_DEVICE int token_of_x(int lane) { return lane / 4; }
HAL_DEVICE int token_of_sum(int lane, int i) { return lane % 4 * 2 + i; }

// sums[row * LANE_TOKENS + token] += 32 columns; a run of 8 columns is four pairs.
HAL_DEVICE void multiply_32(float (&sums)[LANE_ROWS * LANE_TOKENS],
                            const u32 (&weight)[LANE_ROWS][LANE_PIECES][4],
                            const Words (&x)[LANE_PIECES]) {
  const u32(&low)[4] = weight[0][0];
  const u32(&high)[4] = weight[1][0];
  const u32(&pairs)[4] = x[0].word;
  multiply_16x8x16(sums, low[0], high[0], low[1], high[1], pairs[0], pairs[1]);
  multiply_16x8x16(sums, low[2], high[2], low[3], high[3], pairs[2], pairs[3]);
}
