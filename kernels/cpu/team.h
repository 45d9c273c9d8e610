// Threads that share one walk, each with a part of the hidden units, in lockstep.

#pragma once

#include <atomic>
#include <thread>

#include "threads.h"

namespace fused_rnn {

// The work comes in phases, of one piece per member; a phase begins when the previous one is done.
// A waiting thread takes over pieces that are not started after a while. So a member that is
// descheduled, or late, or never comes, delays at most the piece that it is working on.
class Team {
 public:
  const int64_t members;

  Team(int64_t members, int64_t phases)
      : members(members), phases(phases), begun(std::make_unique<Begun[]>(members)) {}

  // Calls work(phase, piece) until all pieces of all phases are done.
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
  static constexpr int64_t PATIENCE = 256;  // a few microseconds

  // The number of pieces of each member that were started; each has its own cache line.
  struct alignas(64) Begun {
    std::atomic<int64_t> count{0};
  };

  template <typename Work> bool take(int64_t phase, int64_t piece, Work &work) {
    int64_t expected = phase;
    // `done` was read with acquire, so the writes of the previous phase are visible.
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
