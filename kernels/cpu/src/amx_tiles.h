// The tile registers of one thread. With HAL_EMULATE_AMX the instructions are plain C++, so that
// what is built on them can be tested on any CPU.
#pragma once

#include <immintrin.h>

#include <cstdint>

#if defined(HAL_EMULATE_AMX)
#include "amx_emulated.h"
#endif

namespace hal::cpu {
namespace {

inline constexpr int64_t kTileTokens = 16;  // rows of a tile of x and of sums
inline constexpr int64_t kTileBytes = 64;   // of a row of any tile
inline constexpr int64_t kTileUnits = 16;   // rows of a tile of weight: 32 bits of depth in each

// The compiler's tile instructions do not say that they read memory: without this, stores before
// them may come after them, or never.
inline void publish(const void* written) { __asm__ volatile("" : : "r"(written) : "memory"); }

// As LDTILECFG reads it; palette 1 is eight tiles of up to 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 to 3 hold sums [tile of tokens][strip of weight], 4 and 5 tokens of x, 6 and 7 weight.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    // What is in tiles would be saved at every switch of the thread.
    ~Tiles() {
        if (tokens_ != 0) _tile_release();
    }

    // For 1 to 32 tokens and steps of 1 to 16 units; leaves zeros in all tiles if that is new.
    void configure(int64_t tokens, int64_t units) {
        if (tokens == tokens_ && units == units_) return;
        tokens_ = tokens;
        units_ = units;
        TileConfig config;
        const int64_t first = tokens < kTileTokens ? tokens : kTileTokens;
        for (int tile = 0; tile < 4; ++tile) {
            set(config, tile, tile < 2 ? first : tokens - first, kTileBytes);
        }
        set(config, 4, first, 4 * units);
        set(config, 5, tokens - first, 4 * units);
        set(config, 6, units, kTileBytes);
        set(config, 7, units, kTileBytes);
        publish(&config);
        _tile_loadconfig(&config);
    }

  private:
    // A tile without rows must not have bytes in them.
    static void set(TileConfig& config, int tile, int64_t rows, int64_t row_bytes) {
        config.rows[tile] = uint8_t(rows);
        config.row_bytes[tile] = uint16_t(rows == 0 ? 0 : row_bytes);
    }

    int64_t tokens_ = 0;
    int64_t units_ = 0;
};

}  // namespace
}  // namespace hal::cpu
