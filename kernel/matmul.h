// Products of activations and weights: C = A W (+ bias), with something done to each number of C on its way.
//
// Four tile registers hold 32 x 32 numbers of C. Each step of K = 32 loads two tiles of A and two of W and does
// four products with them. The loop over W's 32 columns is outside, so that their tiles (K / 32 x 2 KB) stay in
// the first-level cache while A streams past them from the second.
//
//        W: 2 tiles          registers   0 1  C, upper 16 rows
//     A: [4] x [6 7]  ->                 2 3  C, lower 16 rows
//        [5]                             4 5  A    6 7  W
//
// Vector instructions work beside the tile unit if they are given something to do: what has to be done to a block
// of C (an activation, a sum, rounding to bfloat16) waits in a scratch of 4 KB and is done, a few rows a step,
// inside the loop of the next block. That makes GELU free.
#pragma once

#include "layout.h"
#include "numerics.h"

namespace embatch {

constexpr int kScratch = 2 * kPanel * kPanel;  // floats: two blocks of C, one being filled, one being emptied

// What is done to a block of C in the loop of the next one. `Row` turns 32 floats into their place in D.
template <class T, class Row>
struct Deferred {
  const float *block;
  T *to;
  int row = 0, rows = 0;

  EMBATCH_INLINE void one() {
    Row::apply(load(block + row * kPanel), load(block + row * kPanel + 16), to + row * kPanel);
    row++;
  }
  EMBATCH_INLINE void some() {
    if (row + 3 <= rows)
      one(), one(), one();
    else
      rest();
  }
  EMBATCH_INLINE void rest() {
    while (row < rows) one();
  }
  EMBATCH_INLINE void begin(const float *from, T *destination, int count) {
    block = from, to = destination, row = 0, rows = count;
  }
};

struct Narrow {  // rounded to bfloat16
  static EMBATCH_INLINE void apply(f32x16 x, f32x16 y, bf16 *to) { store(to, narrow(x, y)); }
};
struct GeluNarrow {
  static EMBATCH_INLINE void apply(f32x16 x, f32x16 y, bf16 *to) { store(to, narrow(gelu(x), gelu(y))); }
};
struct Keep {  // as it is
  static EMBATCH_INLINE void apply(f32x16 x, f32x16 y, float *to) { store(to, x), store(to + 16, y); }
};
struct Add {  // to what is there
  static EMBATCH_INLINE void apply(f32x16 x, f32x16 y, float *to) {
    store(to, add(x, load(to))), store(to + 16, add(y, load(to + 16)));
  }
};

// The steps of one block: `Halves` is 2 for 32 rows of A, 1 for the last 16 or fewer.
template <int Halves, class Rest>
EMBATCH_INLINE void steps(const bf16 *a, size_t a_stride, const bf16 *w, int count, const char *&ahead,
                          int lines, Rest &previous) {
  for (int k = 0; k < count; k++, a += a_stride, w += 2 * kTileNumbers) {
    TILE_STREAM(4, a, 64);
    TILE_LOAD(6, w, 64);
    TILE_PRODUCT(0, 4, 6);
    TILE_LOAD(7, w + kTileNumbers, 64);
    TILE_PRODUCT(1, 4, 7);
    if (Halves == 2) {
      TILE_STREAM(5, a + kTileRows * kPanel, 64);
      TILE_PRODUCT(2, 5, 6);
      TILE_PRODUCT(3, 5, 7);
    }
    previous.some();
    for (int i = 0; i < lines; i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
  }
}

// D = Row(A W + bias) for `rows` rows, `inputs` panels of A and `outputs` panels of D; no bias where it is null.
// Returns the weights that follow. Rows after the last, up to a multiple of 16, are written too, with nothing
// that counts.
template <class Row, class T>
const bf16 *product(Panels<const bf16> A, int rows, const bf16 *weights, int inputs, int outputs,
                    const float *bias, Panels<T> D, float *scratch) {
  // Accumulators begin as the bias or as zeros, read with stride 0: a row for all rows. TILEZERO right before a
  // product would make the products wait for one another.
  alignas(64) static const float zeros[kPanel] = {};
  Deferred<T, Row> previous;
  previous.begin(scratch, D.data, 0);
  const int blocks = (rows + kPanel - 1) / kPanel;
  const int lines = (kPanel + blocks - 1) / blocks;  // the next 32 columns of W, over all steps of these
  int flip = 0;
  for (int n = 0; n < outputs; n++, weights += static_cast<size_t>(inputs) * 2 * kTileNumbers) {
    const char *ahead = reinterpret_cast<const char *>(weights + static_cast<size_t>(inputs) * 2 * kTileNumbers);
    const float *first = bias ? bias + n * kPanel : zeros;
    for (int m = 0; m < rows; m += kPanel) {
      float *block = scratch + flip * kPanel * kPanel;
      flip ^= 1;
      const bool two = rows - m > kTileRows;
      TILE_LOAD(0, first, 0);
      TILE_LOAD(1, first + 16, 0);
      if (two) {
        TILE_LOAD(2, first, 0);
        TILE_LOAD(3, first + 16, 0);
        steps<2>(A.at(0, m), A.stride, weights, inputs, ahead, lines, previous);
      } else {
        steps<1>(A.at(0, m), A.stride, weights, inputs, ahead, lines, previous);
      }
      previous.rest();
      TILE_STORE(0, block, 128);
      TILE_STORE(1, block + 16, 128);
      if (two) {
        TILE_STORE(2, block + 512, 128);
        TILE_STORE(3, block + 528, 128);
      }
      previous.begin(block, D.at(n, m), two ? 32 : 16);
    }
  }
  previous.rest();
  phase_ends();
  return weights;
}

}  // namespace embatch
