// Where numbers lie.
//
// Activations lie in column panels: 32 columns of all rows, then the next 32.
//
//     panel 0                panel 1
//     row 0  [0 .. 31]       row 0  [32 .. 63]       a row of a panel: 64 bytes of bfloat16, which is a row of
//     row 1  [0 .. 31]       row 1  [32 .. 63]       a tile, so a tile may begin at any row. Texts lie end to
//     ...                    ...                     end with no padding between them. A head of 32 columns
//     `rows` of them, gap                            is a panel, one of 64 is two.
//
// From panel to panel it is `rows` rounded up to 64, plus 32: an odd multiple of 2 KB. With a power of two
// all panels' rows would fall into the same sets of the first-level cache.
//
// A weight matrix [outputs][inputs] lies as tiles in the order in which the products read them: 32 outputs at
// a time, for these 32 inputs at a time, for these two tiles of 16 outputs. In a tile, row p holds the inputs
// 2p and 2p + 1 of each output as a pair. A layer's matrices follow one another as they are used: each head's
// query, key and value, the attention's output, then the feed-forward part chunk by chunk. What is needed
// next is always what comes next, and can be fetched ahead without knowing what it is.
#pragma once

#include <stdlib.h>
#include <sys/mman.h>

#include "tiles.h"

namespace embatch {

constexpr int kPanel = 32;      // columns of a panel; inputs and outputs of a step of a product
constexpr int kBlock = 512;     // tokens that go through the whole net together; the longest text
constexpr int kMaxHidden = 1024;

template <class T>
struct Panels {
  T *data;
  size_t stride;  // numbers from one panel to the next

  EMBATCH_INLINE T *at(int panel, int row) const { return data + panel * stride + row * kPanel; }
  EMBATCH_INLINE Panels from(int panel) const { return {data + panel * stride, stride}; }
};

constexpr int padded_rows(int rows) { return (rows + 63) / 64 * 64 + 32; }

// Memory on huge pages, zeroed; null where there is none.
inline void *allocate(size_t bytes);

// Hands out pieces of one allocation, each on its own page. Without memory it only counts: whoever lays
// something out runs through it twice, first to learn how much it takes.
class Arena {
 public:
  explicit Arena(void *memory = nullptr) : memory_(static_cast<char *>(memory)) {}

  template <class T>
  T *take(size_t count) {
    char *place = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * sizeof(T) + 4095) & ~static_cast<size_t>(4095);
    return reinterpret_cast<T *>(place);
  }
  size_t used() const { return used_; }

 private:
  char *memory_;
  size_t used_ = 0;
};

#if defined(EMBATCH_PORTABLE)
// How many allocations succeed before one fails; below zero, all. For tests.
inline int allocations_left = -1;
#endif

inline void *allocate(size_t bytes) {
#if defined(EMBATCH_PORTABLE)
  if (allocations_left == 0) return nullptr;
  if (allocations_left > 0) allocations_left--;
#endif
  constexpr size_t huge = static_cast<size_t>(2) << 20;
  void *memory = nullptr;
  bytes = (bytes + huge - 1) / huge * huge;
  if (posix_memalign(&memory, huge, bytes)) return nullptr;
  madvise(memory, bytes, MADV_HUGEPAGE);  // where it is refused, small pages do
  memset(memory, 0, bytes);
  return memory;
}

// Packs outputs n0 .. n0 + outputs and inputs k0 .. k0 + inputs of a matrix [..][row] times `factor`; returns
// where the next one begins. Sets *finite to false where a number has no finite bfloat16.
inline bf16 *pack(bf16 *to, const float *matrix, int row, int n0, int outputs, int k0, int inputs, float factor,
                  bool *finite) {
  for (int n = n0; n < n0 + outputs; n += kPanel)
    for (int k = k0; k < k0 + inputs; k += kPanel)
      for (int tile = 0; tile < 2; tile++, to += kTileNumbers)
        for (int pair = 0; pair < 16; pair++)
          for (int column = 0; column < 16; column++) {
            const float *from =
                matrix + static_cast<size_t>(n + tile * 16 + column) * row + k + 2 * pair;
            for (int i = 0; i < 2; i++) {
              const bf16 packed = narrow(factor * from[i]);
              *finite &= (packed & 0x7f80) != 0x7f80;
              to[(pair * 16 + column) * 2 + i] = packed;
            }
          }
  return to;
}

}  // namespace embatch
