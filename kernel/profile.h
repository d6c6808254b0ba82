// Where the time goes: cycles of each stage of each thread, in builds for benchmarks (EMBATCH_PROFILE) only.
#pragma once

#include <stdint.h>

#if defined(EMBATCH_PROFILE)
#include <atomic>
#include <x86intrin.h>
#endif

namespace embatch {
namespace profile {

enum Stage { kEnds, kQkv, kAttention, kOutput, kNorm, kInner, kOuter, kStages };

#if defined(EMBATCH_PROFILE)
inline std::atomic<uint64_t> cycles[kStages];
inline thread_local uint64_t since;

inline void begin() { since = __rdtsc(); }
inline void done(Stage stage) {
  const uint64_t now = __rdtsc();
  cycles[stage].fetch_add(now - since, std::memory_order_relaxed);
  since = now;
}
#else
inline void begin() {}
inline void done(Stage) {}
#endif

}  // namespace profile
}  // namespace embatch
