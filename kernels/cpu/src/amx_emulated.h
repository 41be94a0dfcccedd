// The tile instructions in plain C++, for tests. Each does what Intel's manual (Software
// Developer's Manual, volume 2) says of it, and ends the process where the CPU would fault.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hal::cpu {
namespace {

class EmulatedTiles {
  public:
    void load_config(const void* memory) {
        uint8_t config[64];
        std::memcpy(config, memory, sizeof config);
        *this = {};
        if (config[0] == 0) return;
        require(config[0] == 1, "LDTILECFG: palette is 0 or 1");
        for (int i = 1; i < 16; ++i) require(config[i] == 0, "LDTILECFG: start row and reserved");
        for (int i = 0; i < 16; ++i) {
            uint16_t row_bytes;
            std::memcpy(&row_bytes, config + 16 + 2 * i, sizeof row_bytes);
            const uint8_t rows = config[48 + i];
            require((rows == 0) == (row_bytes == 0), "LDTILECFG: rows and bytes, or neither");
            require(rows <= 16 && row_bytes <= 64, "LDTILECFG: 16 rows of 64 bytes at most");
            require(i < 8 || rows == 0, "LDTILECFG: eight tiles");
            if (i < 8) tiles_[i].rows = rows;
            if (i < 8) tiles_[i].row_bytes = row_bytes;
        }
        is_configured_ = true;
    }

    void release() { *this = {}; }

    void zero(int index) { clear(configured(index)); }

    void load(int index, const void* base, int64_t stride) {
        Tile& tile = configured(index);
        clear(tile);
        const char* row = static_cast<const char*>(base);
        for (int r = 0; r < tile.rows; ++r, row += stride) {
            std::memcpy(tile.bytes[r], row, size_t(tile.row_bytes));
        }
    }

    void store(int index, void* base, int64_t stride) {
        const Tile& tile = configured(index);
        char* row = static_cast<char*>(base);
        for (int r = 0; r < tile.rows; ++r, row += stride) {
            std::memcpy(row, tile.bytes[r], size_t(tile.row_bytes));
        }
    }

    // TDPBSUD and its kin: A and B are the element types of the two sources. Sums wrap.
    template <class A, class B>
    void dot_bytes(int sums, int a, int b) {
        Tile& to = operands(sums, a, b);
        for (int m = 0; m < to.rows; ++m) {
            for (int n = 0; n < to.row_bytes / 4; ++n) {
                uint32_t sum = element<uint32_t>(to, m, n);
                for (int k = 0; k < tiles_[a].row_bytes; ++k) {
                    const int x = element<A>(tiles_[a], m, k);
                    sum += uint32_t(x * int(element<B>(tiles_[b], k / 4, 4 * n + k % 4)));
                }
                std::memcpy(to.bytes[m] + 4 * n, &sum, sizeof sum);
            }
        }
        clear_beyond(to);
    }

    // TDPBF16PS: the even and the odd elements of k in a chain of fused steps each, their sum added.
    void dot_bf16(int sums, int a, int b) {
        Tile& to = operands(sums, a, b);
        for (int m = 0; m < to.rows; ++m) {
            for (int n = 0; n < to.row_bytes / 4; ++n) {
                float chains[2] = {0.0f, 0.0f};
                for (int k = 0; k < tiles_[a].row_bytes / 2; ++k) {
                    const float x = widened(element<uint16_t>(tiles_[a], m, k));
                    const float w = widened(element<uint16_t>(tiles_[b], k / 2, 2 * n + k % 2));
                    chains[k % 2] = flushed(__builtin_fmaf(x, w, chains[k % 2]));
                }
                const float both = flushed(chains[0] + chains[1]);
                const float sum = flushed(flushed(element<float>(to, m, n)) + both);
                std::memcpy(to.bytes[m] + 4 * n, &sum, sizeof sum);
            }
        }
        clear_beyond(to);
    }

  private:
    struct Tile {
        int rows = 0;
        int row_bytes = 0;
        uint8_t bytes[16][64] = {};
    };

    static void require(bool is_legal, const char* rule) {
        if (is_legal) return;
        std::fprintf(stderr, "emulated tiles: %s\n", rule);
        std::abort();
    }

    Tile& configured(int index) {
        require(is_configured_, "tiles are not configured");
        require(index >= 0 && index < 8, "tiles are 0 to 7");
        require(tiles_[index].rows != 0, "this tile has no rows");
        return tiles_[index];
    }

    // sums [m][n] of a [m][k] and b [k][n], all in units of 32 bits.
    Tile& operands(int sums, int a, int b) {
        require(sums != a && sums != b && a != b, "three different tiles");
        Tile& to = configured(sums);
        const Tile& left = configured(a);
        const Tile& right = configured(b);
        const bool is_whole = (to.row_bytes | left.row_bytes | right.row_bytes) % 4 == 0;
        require(is_whole, "rows are a multiple of 4 bytes");
        require(to.rows == left.rows, "sums and the first source have as many rows");
        require(to.row_bytes == right.row_bytes, "sums and the second source have rows as long");
        require(left.row_bytes / 4 == right.rows, "the depths of the sources are equal");
        return to;
    }

    template <class T>
    static T element(const Tile& tile, int row, int column) {
        T value;
        std::memcpy(&value, tile.bytes[row] + column * int(sizeof value), sizeof value);
        return value;
    }

    // Denormals are zeros of their sign, read and written.
    static float flushed(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

    static float widened(uint16_t bits) {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return flushed(value);
    }

    static void clear(Tile& tile) { std::memset(tile.bytes, 0, sizeof tile.bytes); }

    static void clear_beyond(Tile& tile) {
        for (int r = 0; r < 16; ++r) {
            const int kept = r < tile.rows ? tile.row_bytes : 0;
            std::memset(tile.bytes[r] + kept, 0, size_t(64 - kept));
        }
    }

    bool is_configured_ = false;
    Tile tiles_[8];
};

inline EmulatedTiles& emulated_tiles() {
    static thread_local EmulatedTiles tiles;
    return tiles;
}

}  // namespace
}  // namespace hal::cpu

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) hal::cpu::emulated_tiles().load_config(config)
#define _tile_release() hal::cpu::emulated_tiles().release()
#define _tile_zero(tile) hal::cpu::emulated_tiles().zero(tile)
#define _tile_loadd(tile, base, stride) hal::cpu::emulated_tiles().load(tile, base, stride)
#define _tile_stored(tile, base, stride) hal::cpu::emulated_tiles().store(tile, base, stride)
#define _tile_dpbssd(sums, a, b) hal::cpu::emulated_tiles().dot_bytes<int8_t, int8_t>(sums, a, b)
#define _tile_dpbsud(sums, a, b) hal::cpu::emulated_tiles().dot_bytes<int8_t, uint8_t>(sums, a, b)
#define _tile_dpbusd(sums, a, b) hal::cpu::emulated_tiles().dot_bytes<uint8_t, int8_t>(sums, a, b)
#define _tile_dpbuud(sums, a, b) hal::cpu::emulated_tiles().dot_bytes<uint8_t, uint8_t>(sums, a, b)
#define _tile_dpbf16ps(sums, a, b) hal::cpu::emulated_tiles().dot_bf16(sums, a, b)
