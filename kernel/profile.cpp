// Of builds for benchmarks: where the cycles went, and what the processor's tiles can do at most.
#include "profile.h"

#include <chrono>
#include <initializer_list>

#include "embatch_amx.h"
#include "layout.h"

namespace {

constexpr int kSteps = 8;  // of K: both operands, 32 KB together, stay in the first-level cache

struct alignas(4096) Operands {
  embatch::bf16 a[kSteps * 2 * embatch::kTileNumbers], w[kSteps * 2 * embatch::kTileNumbers];
};

// Numbers between 1/2 and 1 in size, of either sign: mantissas as busy as real ones.
Operands busy() {
  Operands made;
  uint64_t state = 1;
  for (embatch::bf16 *all : {made.a, made.w})
    for (int i = 0; i < kSteps * 2 * embatch::kTileNumbers; i++) {
      state = state * 6364136223846793005 + 1442695040888963407;
      all[i] = static_cast<embatch::bf16>(0x3f00 | (state >> 57) | (state >> 48 & 0x8000));
    }
  return made;
}

}  // namespace

extern "C" {

// Copies what each stage of `profile.h` took in all threads since it was asked last, in cycles of the time stamp
// counter, and the counter itself behind them; returns the number of stages.
EMBATCH_API int embatch_amx_cycles(uint64_t *to) {
  using namespace embatch::profile;
  for (int stage = 0; stage < kStages; stage++) to[stage] = cycles[stage].exchange(0);
  to[kStages] = __rdtsc();
  return kStages;
}

// Returns how many floating-point operations a second this thread's tile unit does for so long, on random numbers or
// on zeros: two by two tiles, four loads from the first-level cache for four products, as in `matmul.h`. With zeros
// the clock stays higher, which says nothing of real work.
EMBATCH_API double embatch_amx_rate(int random, double seconds) {
  static const Operands nothing = {}, numbers = busy();
  const Operands &x = random ? numbers : nothing;
  alignas(64) static const float zeros[16] = {};
  const embatch::Arithmetic arithmetic;
  const embatch::Tiles tiles;
  using Clock = std::chrono::steady_clock;
  const auto begun = Clock::now();
  double spent = 0, operations = 0;
  do {
    for (int times = 0; times < 64; times++) {
      TILE_LOAD(0, zeros, 0);
      TILE_LOAD(1, zeros, 0);
      TILE_LOAD(2, zeros, 0);
      TILE_LOAD(3, zeros, 0);
      for (int k = 0; k < kSteps; k++) {
        const embatch::bf16 *a = x.a + k * 2 * embatch::kTileNumbers, *w = x.w + k * 2 * embatch::kTileNumbers;
        TILE_LOAD(4, a, 64);
        TILE_LOAD(6, w, 64);
        TILE_PRODUCT(0, 4, 6);
        TILE_LOAD(7, w + embatch::kTileNumbers, 64);
        TILE_PRODUCT(1, 4, 7);
        TILE_LOAD(5, a + embatch::kTileNumbers, 64);
        TILE_PRODUCT(2, 5, 6);
        TILE_PRODUCT(3, 5, 7);
      }
    }
    operations += 64.0 * kSteps * 4 * (2 * 16 * 16 * 32);
    spent = std::chrono::duration<double>(Clock::now() - begun).count();
  } while (spent < seconds);
  return operations / spent;
}

}  // extern "C"
