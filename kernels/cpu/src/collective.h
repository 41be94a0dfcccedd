// Ranks of one machine that meet in memory which all of them map.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels.h"

namespace hal::cpu {

// One rank's end. Every rank makes the same calls in the same order, each from one thread.
//
// A rank writes its part to one of its two slots, says so, and reads the slots of all. It writes to
// a slot again two exchanges later: by then it has seen every other rank at the exchange between,
// which those begin only after they have read this one.
//
// Whoever waits spins for a moment, then sleeps. Once the group has failed, every exchange returns
// at once and leaves its output undefined: `failure` says so, and only then is it asked.
class Communicator {
  public:
    static constexpr int64_t kSlotBytes = 256 << 10;
    static constexpr int kMaxRanks = 64;
    static constexpr int kNoFailure = -2;
    static constexpr int kLeft = -1;

    static int64_t region_bytes(int size);

    // region: region_bytes(size) bytes, zero before the first rank comes.
    Communicator(void* region, int rank, int size, double timeout_s);

    int rank() const { return rank_; }
    int size() const { return size_; }

    // Sums in float32 in the order of ranks, rounded once: all ranks get the same bits.
    void all_reduce(void* x, int64_t count, DType dtype);
    // own [rows, this rank's columns] -> out [rows, columns] of elements of so many bytes; ranks
    // below columns % size have one column more than the others.
    void all_gather(const void* own, int64_t rows, int64_t columns, int64_t element, void* out);
    void broadcast(void* x, int64_t bytes, int root);

    void limit_waits(double timeout_s) { timeout_s_ = timeout_s; }
    void abort() { fail(kLeft); }
    // kNoFailure, kLeft, or the rank that this one waited for in vain.
    int failure() const;

  private:
    struct Arrival;
    struct Header;

    Arrival& arrival(int rank) const;
    char* slot(int rank, uint32_t exchange) const;
    // True once all ranks have written the slot of the current exchange.
    bool meet();
    bool wait_for(int rank);
    void fail(int why);

    Header* header_;
    char* slots_;
    int rank_;
    int size_;
    int spins_;
    double timeout_s_;
    uint32_t exchange_ = 0;
};

struct AllReduceArgs {
    Communicator* group;
    void* x;
    int64_t count;
    DType dtype;
    int num_threads;  // of a recording; one thread does it
};
void all_reduce(const AllReduceArgs& args);

struct AllGatherArgs {
    Communicator* group;
    const void* own;
    int64_t rows;
    int64_t columns;
    int64_t element;
    void* out;
    int num_threads;
};
void all_gather(const AllGatherArgs& args);

}  // namespace hal::cpu
