// Executes the tile instructions that this CPU does not have: it answers each with SIGILL, and the
// handler decodes it, does it on the emulated tiles and goes on behind it. What the compiler made
// for a CPU with AMX then runs as it is, with its choice of registers and its order of loads.
//
// Source of the encodings: Intel's Software Developer's Manual, volume 2.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <atomic>

#include "../../../kernels/cpu/src/amx_emulated.h"

namespace hal::cpu {
namespace {

class TileInstruction {
  public:
    TileInstruction(const uint8_t* code, greg_t* registers) : code_(code), registers_(registers) {}

    // False where it is something else. Leaves the instruction pointer behind it.
    bool run() {
        if (code_[0] != 0xc4 || (code_[1] & 0x1f) != 2 || (code_[2] & 0x84) != 0) return false;
        reg_ = code_[4] >> 3 & 7;
        if (code_[4] >> 6 == 3) {
            length_ = 5;
            if (!run_on_registers()) return false;
        } else {
            decode_address();
            if (!run_on_memory()) return false;
        }
        registers_[REG_RIP] += length_;
        return true;
    }

  private:
    enum Prefix { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };

    Prefix prefix() const { return Prefix(code_[2] & 3); }
    int opcode() const { return code_[3]; }

    bool run_on_registers() const {
        EmulatedTiles& tiles = emulated_tiles();
        const int a = code_[4] & 7, b = ~code_[2] >> 3 & 15;
        if (opcode() == 0x49 && prefix() == kNone && code_[4] == 0xc0) {
            tiles.release();
        } else if (opcode() == 0x49 && prefix() == kF2) {
            tiles.zero(reg_);
        } else if (opcode() == 0x5e && prefix() == kF2) {
            tiles.dot_bytes<int8_t, int8_t>(reg_, a, b);
        } else if (opcode() == 0x5e && prefix() == kF3) {
            tiles.dot_bytes<int8_t, uint8_t>(reg_, a, b);
        } else if (opcode() == 0x5e && prefix() == k66) {
            tiles.dot_bytes<uint8_t, int8_t>(reg_, a, b);
        } else if (opcode() == 0x5e) {
            tiles.dot_bytes<uint8_t, uint8_t>(reg_, a, b);
        } else if (opcode() == 0x5c && prefix() == kF3) {
            tiles.dot_bf16(reg_, a, b);
        } else {
            return false;
        }
        return true;
    }

    bool run_on_memory() const {
        EmulatedTiles& tiles = emulated_tiles();
        void* memory = reinterpret_cast<void*>(start_ + stride_ * (opcode() == 0x49));
        if (opcode() == 0x49 && prefix() == kNone && reg_ == 0) {
            tiles.load_config(memory);
        } else if (opcode() == 0x4b && (prefix() == kF2 || prefix() == k66)) {
            tiles.load(reg_, memory, stride_);
        } else if (opcode() == 0x4b && prefix() == kF3) {
            tiles.store(reg_, memory, stride_);
        } else {
            return false;
        }
        return true;
    }

    // Base and displacement are where the first row is; the scaled index is the stride.
    void decode_address() {
        const int mod = code_[4] >> 6, low = code_[4] & 7;
        const int high_base = ~code_[1] >> 5 & 1, high_index = ~code_[1] >> 6 & 1;
        const bool has_sib = low == 4;
        const uint8_t sib = has_sib ? code_[5] : low;
        const int displacement_at = has_sib ? 6 : 5;
        const bool has_base = !(mod == 0 && (sib & 7) == 5);
        const int size = mod == 1 ? 1 : mod == 2 || !has_base ? 4 : 0;
        length_ = displacement_at + size;
        start_ = size == 1 ? int8_t(code_[displacement_at]) : 0;
        if (size == 4) {
            int32_t displacement;
            std::memcpy(&displacement, code_ + displacement_at, sizeof displacement);
            start_ = displacement;
        }
        if (has_base) {
            start_ += general((sib & 7) | high_base << 3);
        } else if (!has_sib) {
            start_ += registers_[REG_RIP] + length_;
        }
        const int index = (sib >> 3 & 7) | high_index << 3;
        if (has_sib && index != 4) stride_ = general(index) << (sib >> 6);
    }

    int64_t general(int number) const {
        static constexpr int kAt[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                      REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                      REG_R12, REG_R13, REG_R14, REG_R15};
        return registers_[kAt[number]];
    }

    const uint8_t* code_;
    greg_t* registers_;
    int reg_ = 0;
    int64_t start_ = 0;
    int64_t stride_ = 0;
    int length_ = 0;
};

struct sigaction before_trap;
std::atomic<int64_t> num_trapped = 0;

void on_illegal_instruction(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const uint8_t* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    if (TileInstruction(code, registers).run()) {
        ++num_trapped;
    } else {
        sigaction(SIGILL, &before_trap, nullptr);  // to be met again without the trap
    }
}

}  // namespace
}  // namespace hal::cpu
