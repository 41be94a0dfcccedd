// A step's kernels as one list: recorded once, replayed without Python between them.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

namespace hal::cpu {

// While one is current, kernels launched by its thread are added to it instead of run. It keeps
// their arguments, so the memory behind every address must outlive it; what lies there may change.
class Recording {
  public:
    using Call = std::function<void(int num_threads)>;

    static Recording*& current() {
        thread_local Recording* recording = nullptr;
        return recording;
    }

    template <class Args>
    void add(void (*kernel)(const Args&), const Args& args) {
        bytes_ += int64_t(sizeof(Call) + sizeof(args) + sizeof(kernel));
        calls_.push_back([kernel, args](int num_threads) {
            Args now = args;
            now.num_threads = num_threads;
            kernel(now);
        });
    }

    void replay(int num_threads) const {
        for (const Call& call : calls_) call(num_threads);
    }

    int64_t num_calls() const { return int64_t(calls_.size()); }
    int64_t num_bytes() const { return bytes_; }

  private:
    std::vector<Call> calls_;
    int64_t bytes_ = 0;
};

}  // namespace hal::cpu
