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
// Where K is so large that 32 columns of W would fill that cache, they are taken in equal pieces: what the first
// piece adds up for all rows waits in a scratch in float32 until the next one goes on with it. The sums are the
// same, bit for bit.
//
// Vector instructions work beside the tile unit if they are given something to do: what has to be done to a block
// of C (an activation, a sum, rounding to bfloat16) waits in a scratch of 4 KB and is done, a few rows a step,
// inside the loop of the next block. That makes GELU free.
#pragma once

#include "layout.h"
#include "numerics.h"

namespace embatch {

#if !defined(EMBATCH_RESIDENT)  // benchmarks compile others
#define EMBATCH_RESIDENT 16
#endif
// Panels of K whose 32 columns of W, 2 KB for each, stay in a first-level cache of 48 KB with room for the rest.
constexpr int kResident = EMBATCH_RESIDENT;

// Floats: two blocks of C, one being filled, one being emptied; then the sums that wait for more of K.
constexpr int kScratch = 2 * kPanel * kPanel + kBlock * kPanel;

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
  float *const waiting = scratch + 2 * kPanel * kPanel;
  const int blocks = (rows + kPanel - 1) / kPanel, pieces = (inputs + kResident - 1) / kResident;
  const int lines = (kPanel + blocks - 1) / blocks;  // the next piece of W, over all steps of this one
  int flip = 0;
  for (int n = 0; n < outputs; n++)
    for (int piece = 0; piece < pieces; piece++) {
      const int k = inputs * piece / pieces, count = inputs * (piece + 1) / pieces - k;
      const bf16 *const next = weights + static_cast<size_t>(count) * 2 * kTileNumbers;
      const char *ahead = reinterpret_cast<const char *>(next);
      const bool last = piece + 1 == pieces;
      for (int m = 0; m < rows; m += kPanel) {
        float *const sums = waiting + m * kPanel, *const block = last ? scratch + flip * kPanel * kPanel : sums;
        const float *const first = k ? sums : bias ? bias + n * kPanel : zeros;
        const int stride = k ? 128 : 0, lower = k ? 512 : 0;  // bytes; floats to the lower 16 rows
        const bool two = rows - m > kTileRows;
        TILE_LOAD(0, first, stride);
        TILE_LOAD(1, first + 16, stride);
        if (two) {
          TILE_LOAD(2, first + lower, stride);
          TILE_LOAD(3, first + lower + 16, stride);
          steps<2>(A.at(k, m), A.stride, weights, count, ahead, lines, previous);
        } else {
          steps<1>(A.at(k, m), A.stride, weights, count, ahead, lines, previous);
        }
        previous.rest();
        TILE_STORE(0, block, 128);
        TILE_STORE(1, block + 16, 128);
        if (two) {
          TILE_STORE(2, block + 512, 128);
          TILE_STORE(3, block + 528, 128);
        }
        if (last) {
          previous.begin(block, D.at(n, m), two ? 32 : 16);
          flip ^= 1;
        }
      }
      weights = next;
    }
  previous.rest();
  phase_ends();
  return weights;
}

}  // namespace embatch
