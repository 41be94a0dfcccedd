// The AMX kernels on emulated tiles, and the tiles alone, for test_amx.py.
#define HAL_EMULATE_AMX
#include "../../../kernels/cpu/src/linear_amx.cpp"
#include "amx_trap.h"

using namespace hal::cpu;

// Few tokens are the native module's, which test_amx.py asks itself.
void hal::cpu::linear(const LinearArgs&) { std::abort(); }
void hal::cpu::quantized_linear(const QuantizedLinearArgs&) { std::abort(); }

extern "C" {

// The parameters of the native module's functions.
void linear_on_tiles(const void* x, int64_t x_stride, int64_t m, const void* weight, int64_t n,
                int64_t k, int dtype, const void* bias, void* out, int out_dtype,
                int64_t out_stride, int activation, int gated, int num_threads) {
    run_on_tiles(LinearArgs{.x = x,
                          .x_stride = x_stride,
                          .m = m,
                          .weight = weight,
                          .shape = {n, k, DType(dtype)},
                          .output = {.n = n,
                                     .bias = bias,
                                     .bias_dtype = DType(dtype),
                                     .out = out,
                                     .dtype = DType(out_dtype),
                                     .stride = out_stride,
                                     .activation = Activation(activation),
                                     .gated = gated != 0},
                          .num_threads = num_threads});
}

void quantized_linear_on_tiles(const void* x, int x_dtype, int64_t x_stride, int64_t m,
                               const void* weight, int64_t n, int64_t k, int64_t group,
                               int has_zeros, int codes, void* scratch, const void* bias,
                               void* out, int out_dtype, int64_t out_stride, int activation,
                               int gated, int num_threads) {
    run_on_tiles(QuantizedLinearArgs{.x = x,
                                    .x_dtype = DType(x_dtype),
                                    .x_stride = x_stride,
                                    .m = m,
                                    .weight = weight,
                                    .shape = {n, k, group, has_zeros != 0, Codes(codes)},
                                    .scratch = scratch,
                                    .output = {.n = n,
                                               .bias = bias,
                                               .bias_dtype = DType(x_dtype),
                                               .out = out,
                                               .dtype = DType(out_dtype),
                                               .stride = out_stride,
                                               .activation = Activation(activation),
                                               .gated = gated != 0},
                                    .num_threads = num_threads});
}

// From here to the end the native module's tile instructions run on the emulated tiles.
void begin_trap() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before_trap);
}

// How many did since.
int64_t end_trap() {
    sigaction(SIGILL, &before_trap, nullptr);
    return num_trapped.exchange(0);
}

// sums [16][16] += a [rows][4 units] . b [units][4 columns] in memory of whole tiles.
void tile_product(int kind, int rows, int units, int columns, const void* a, const void* b,
                  void* sums) {
    TileConfig config;
    config.rows[0] = config.rows[1] = uint8_t(rows);
    config.rows[2] = uint8_t(units);
    config.row_bytes[0] = config.row_bytes[2] = uint16_t(4 * columns);
    config.row_bytes[1] = uint16_t(4 * units);
    _tile_loadconfig(&config);
    _tile_loadd(0, sums, kTileBytes);
    _tile_loadd(1, a, kTileBytes);
    _tile_loadd(2, b, kTileBytes);
    if (kind == 0) _tile_dpbssd(0, 1, 2);
    if (kind == 1) _tile_dpbsud(0, 1, 2);
    if (kind == 2) _tile_dpbusd(0, 1, 2);
    if (kind == 3) _tile_dpbuud(0, 1, 2);
    if (kind == 4) _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, sums, kTileBytes);
    _tile_release();
}

// What a CPU answers with a fault.
void misuse(int kind) {
    alignas(64) char memory[16][64] = {};
    TileConfig config;
    for (int tile = 0; tile < 3; ++tile) config.rows[tile] = 8;
    for (int tile = 0; tile < 3; ++tile) config.row_bytes[tile] = 32;
    config.rows[3] = 16;
    config.row_bytes[3] = 64;
    config.rows[4] = 4;
    config.row_bytes[4] = 32;
    if (kind == 1) config.palette = 2;
    if (kind == 2) config.rows[2] = 17;
    if (kind == 3) config.row_bytes[2] = 68;
    if (kind == 4) config.rows[2] = 0;
    if (kind == 5) config.rows[8] = config.row_bytes[8] = 16;
    if (kind != 0) _tile_loadconfig(&config);
    if (kind <= 5) _tile_zero(0);
    if (kind == 6) _tile_loadd(5, memory, kTileBytes);
    if (kind == 7) _tile_dpbsud(0, 1, 1);
    if (kind == 8) _tile_dpbsud(0, 1, 3);
    if (kind == 9) _tile_dpbsud(0, 3, 2);
    if (kind == 10) _tile_dpbf16ps(3, 1, 2);
    if (kind == 11) _tile_dpbsud(0, 1, 4);
    if (kind == 12) _tile_release();
    if (kind == 12) _tile_stored(0, memory, kTileBytes);
}
}
