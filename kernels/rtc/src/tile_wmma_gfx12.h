// How lanes hold a tile of 16 rows by 32 columns of the weight, by 16 tokens, for RDNA 4's WMMA.
//
// Lane l holds row l % 16, columns 16 (l / 16) .. + 15: not those that the instruction calls its
// own, but both of its operands are permuted alike. Tokens are the rows of the instruction, so that
// a lane's sums are of the row whose codes it holds. Source: RDNA4 instruction set guide, WMMA.

#define HAL_TOKEN_TILES 2  // of a block, at most: more would not fit its registers

constexpr int TILE_TOKENS = 16;
constexpr int CODE_LANES = 32;  // lanes of a warp that hold codes of their own
constexpr int LANE_ROWS = 1;    // rows of a tile whose codes, and whose sums, a lane holds
constexpr int LANE_PIECES = 2;  // runs of 8 columns, of the four of 32 columns, that it holds
constexpr int LANE_TOKENS = 8;  // tokens of a tile whose sums it holds

HAL_DEVICE int row_of(int lane, int) { return lane % 16; }
HAL_DEVICE int piece_of(int lane, int i) { return lane / 16 * 2 + i; }
HAL_DEVICE int token_of_x(int lane) { return lane % 16; }
HAL_DEVICE int token_of_sum(int lane, int i) { return lane / 16 * 8 + i; }

// sums += 32 columns; a run of 8 columns is four pairs.
HAL_DEVICE void multiply_32(float (&sums)[LANE_TOKENS],
                            const u32 (&weight)[LANE_ROWS][LANE_PIECES][4],
                            const Words (&x)[LANE_PIECES]) {
#pragma unroll
  for (int i = 0; i < LANE_PIECES; ++i) {
    multiply_16x16x16(sums, x[i].word, weight[0][i]);
  }
}
