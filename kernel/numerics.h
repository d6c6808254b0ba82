// The two functions a BERT needs beside sums and products, as polynomials. What bfloat16 rounds off their
// results, 2e-3 of them, is far more than their errors. Coefficients: minimax, by Lawson's iteration.
#pragma once

#include "simd.h"

namespace embatch {

// x * Phi(x), Phi the normal distribution: x * (1/2 + c * P(c * c)), c being x cut to [-4, 4], where Phi is 0
// or 1 for bfloat16. Absolute error below 1.9e-4 for |x| <= 4, below 3.2e-5 of |x| beyond.
EMBATCH_INLINE f32x16 gelu(f32x16 x) {
  const f32x16 c = within(x, 4.0f), t = mul(c, c);
  f32x16 p = all(2.27814713e-08f);
  p = fma(p, t, all(-1.59860385e-06f));
  p = fma(p, t, all(4.7955548e-05f));
  p = fma(p, t, all(-0.000814015729f));
  p = fma(p, t, all(0.00877238941f));
  p = fma(p, t, all(-0.0645731128f));
  p = fma(p, t, all(0.397883351f));
  return mul(x, fma(p, c, all(0.5f)));
}

// 2^x, relative error below 7.6e-5. What is too large becomes infinite, what is too small zero.
EMBATCH_INLINE f32x16 exp2(f32x16 x) {
  const f32x16 f = fraction(x);
  f32x16 p = fma(all(0.0780244888f), f, all(0.226067575f));
  p = fma(p, f, all(0.695833179f));
  p = fma(p, f, all(0.999925277f));
  return scale(p, x);
}

}  // namespace embatch
