// Threads that take one walk together: a part of the hidden units for each, in step.

#pragma once

#include <atomic>
#include <thread>

#include "threads.h"

namespace fused_rnn {

// The work comes in phases of as many pieces as there are members; a phase begins when the one
// before is done. Whoever waits too long for a piece that nobody has begun does it himself: so a
// member that gets no processor, or comes late, or never, holds up at most the piece it is at.
class Team {
 public:
  const int64_t members;

  Team(int64_t members, int64_t phases)
      : members(members), phases(phases), begun(std::make_unique<Begun[]>(members)) {}

  // Calls work(phase, piece), until all is done by all.
  template <typename Work> void run(int64_t member, Work work) {
    if (members == 1) {
      for (int64_t phase = 0; phase < phases; ++phase) work(phase, 0);
      return;
    }
    here.fetch_add(1, std::memory_order_relaxed);
    for (int64_t phase = 0; phase < phases; ++phase) {
      take(phase, member, work);
      for (int64_t turns = 0; done.load(std::memory_order_acquire) < (phase + 1) * members;
           ++turns) {
        if (turns < PATIENCE && here.load(std::memory_order_relaxed) == members) {
          relax();
          continue;
        }
        bool taken = false;
        for (int64_t piece = 0; piece < members && !taken; ++piece) taken = take(phase, piece, work);
        if (!taken) std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int64_t PATIENCE = 256;  // some microseconds

  // How many pieces of a member were begun; each in a cache line of its own.
  struct alignas(64) Begun {
    std::atomic<int64_t> count{0};
  };

  template <typename Work> bool take(int64_t phase, int64_t piece, Work &work) {
    int64_t expected = phase;
    // What the phase before wrote was seen with `done`.
    if (!begun[piece].count.compare_exchange_strong(expected, phase + 1, std::memory_order_relaxed))
      return false;
    work(phase, piece);
    done.fetch_add(1, std::memory_order_acq_rel);
    return true;
  }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t phases;
  std::unique_ptr<Begun[]> begun;
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<int64_t> here{0};
};

}  // namespace fused_rnn
