// The same products as in `matmul.h` for processors without a tile unit, by VDPBF16PS.
#pragma once

#include "layout.h"
#include "numerics.h"

namespace embatch {

constexpr int kScratch = 16;

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
#ifndef ROWS
#define ROWS 8
#endif
template <int R, class Row, class T>
EMBATCH_INLINE void rows_of(const bf16 *a, size_t a_stride, const bf16 *w, int count, const float *first, T *to) {
  __m512 c[2 * R];
  const __m512 b0 = first ? load(first) : zero(), b1 = first ? load(first + 16) : zero();
  EMBATCH_UNROLL(16)
  for (int r = 0; r < R; r++) c[2 * r] = b0, c[2 * r + 1] = b1;
  for (int k = 0; k < count; k++, a += a_stride, w += 2 * kTileNumbers) {
    EMBATCH_UNROLL(2)
    for (int p = 0; p < 16; p++) {
      const __m512bh w0 = (__m512bh)load(w + p * 32), w1 = (__m512bh)load(w + kTileNumbers + p * 32);
      EMBATCH_UNROLL(16)
      for (int r = 0; r < R; r++) {
        int pair;
        memcpy(&pair, a + r * kPanel + 2 * p, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        c[2 * r] = _mm512_dpbf16_ps(c[2 * r], x, w0), c[2 * r + 1] = _mm512_dpbf16_ps(c[2 * r + 1], x, w1);
      }
    }
  }
  EMBATCH_UNROLL(16)
  for (int r = 0; r < R; r++) Row::apply(c[2 * r], c[2 * r + 1], to + r * kPanel);
}

template <class Row, class T>
const bf16 *product(Panels<const bf16> A, int rows, const bf16 *weights, int inputs, int outputs,
                    const float *bias, Panels<T> D, float *) {
  for (int n = 0; n < outputs; n++, weights += static_cast<size_t>(inputs) * 2 * kTileNumbers) {
    for (int m = 0; m < rows; m += ROWS)
      rows_of<ROWS, Row>(A.at(0, m), A.stride, weights, inputs, bias ? bias + n * kPanel : nullptr, D.at(n, m));
  }
  phase_ends();
  return weights;
}

}  // namespace embatch
