// How lanes hold a tile of 16 rows by 32 columns of the weight, by 16 tokens, for RDNA 3's WMMA.
//
// Lane l holds all columns of row l % 16: the instruction wants both halves of a wavefront to hold
// the same. Tokens are its rows, so that a lane's sums are of the row whose codes it holds.
// Source: RDNA3 instruction set guide, 7.9, "Wave Matrix Multiply Accumulate".

#define HAL_TOKEN_TILES 1  // of a block, at most: more would not fit its registers

constexpr int TILE_TOKENS = 16;
constexpr int CODE_LANES = 16;  // lanes of a warp that hold codes of their own
constexpr int LANE_ROWS = 1;    // rows of a tile whose codes, and whose sums, a lane holds
constexpr int LANE_PIECES = 4;  // runs of 8 columns, of the four of 32 columns, that it holds
constexpr int LANE_TOKENS = 8;  // tokens of a tile whose sums it holds

HAL_DEVICE int row_of(int lane, int) { return lane % 16; }
HAL_DEVICE int piece_of(int, int i) { return i; }
HAL_DEVICE int token_of_x(int lane) { return lane % 16; }
HAL_DEVICE int token_of_sum(int lane, int i) { return i * 2 + lane / 16; }

// sums += 32 columns; a run of 8 columns is four pairs.
HAL_DEVICE void multiply_32(float (&sums)[LANE_TOKENS],
                            const u32 (&weight)[LANE_ROWS][LANE_PIECES][4],
                            const Words (&x)[LANE_PIECES]) {
#pragma unroll
  for (int i = 0; i < LANE_PIECES; i += 2) {
    const u32(&low)[4] = x[i].word;
    const u32(&high)[4] = x[i + 1].word;
    const u32(&low_codes)[4] = weight[0][i];
    const u32(&high_codes)[4] = weight[0][i + 1];
    multiply_16x16x16(
        sums, {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]},
        {low_codes[0], low_codes[1], low_codes[2], low_codes[3], high_codes[0], high_codes[1],
         high_codes[2], high_codes[3]});
  }
}
