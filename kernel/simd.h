// Vectors of sixteen floats and of thirty-two bfloat16: the few operations the kernel is made of.
//
// Three builds share everything above this file and `tiles.h`. The native one is AVX-512 and AMX; the portable one
// (EMBATCH_PORTABLE, for tests) does the same arithmetic in plain C++, bit for bit, on any processor; between them
// EMBATCH_PORTABLE with EMBATCH_VECTORS takes the native vectors and the plain tiles: on a processor without AMX
// it shows that both kinds of vectors do the same.
// All run with denormals as zero: the tile products know nothing else, and the vectors shall agree with them.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <immintrin.h>  // of plain vectors: MXCSR only

#define EMBATCH_INLINE inline __attribute__((always_inline))
#define EMBATCH_FLATTEN __attribute__((always_inline))  // of a lambda
#define EMBATCH_PRAGMA(words) _Pragma(#words)
#if defined(EMBATCH_PORTABLE) && !defined(EMBATCH_VECTORS)
#define EMBATCH_PLAIN_VECTORS
#define EMBATCH_UNROLL(times)
#else
#define EMBATCH_UNROLL(times) EMBATCH_PRAGMA(GCC unroll times)
#endif

namespace embatch {

using bf16 = uint16_t;  // the upper half of a float32

// Tile loads are opaque to the compiler, which may otherwise move stores of the phase before behind them.
EMBATCH_INLINE void phase_ends() { asm volatile("" ::: "memory"); }

// Denormals as zero, nearest rounding and no traps until the end of the scope, whatever the thread has set.
class Arithmetic {
 public:
  Arithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }
  ~Arithmetic() { _mm_setcsr(before_); }
  Arithmetic(const Arithmetic &) = delete;
  Arithmetic &operator=(const Arithmetic &) = delete;

 private:
  unsigned before_;
};

EMBATCH_INLINE float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Rounds to the nearest, ties to even; denormals become zero and NaN stays NaN, as VCVTNE2PS2BF16 does.
EMBATCH_INLINE bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<bf16>((bits >> 16) | 0x40);
  if (size < 0x00800000) return static_cast<bf16>((bits >> 16) & 0x8000);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if !defined(EMBATCH_PLAIN_VECTORS)

using f32x16 = __m512;
using bf16x32 = __m512i;

EMBATCH_INLINE f32x16 zero() { return _mm512_setzero_ps(); }
EMBATCH_INLINE f32x16 all(float x) { return _mm512_set1_ps(x); }
EMBATCH_INLINE f32x16 load(const float *p) { return _mm512_loadu_ps(p); }
EMBATCH_INLINE void store(float *p, f32x16 x) { _mm512_storeu_ps(p, x); }
EMBATCH_INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
EMBATCH_INLINE f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
EMBATCH_INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
EMBATCH_INLINE f32x16 div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
EMBATCH_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
EMBATCH_INLINE f32x16 larger(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
// x cut to [-limit, limit]: one instruction, its sign from x.
EMBATCH_INLINE f32x16 within(f32x16 x, float limit) { return _mm512_range_ps(x, all(limit), 2); }
// x - floor(x), rounded down, so that it stays below 1
EMBATCH_INLINE f32x16 fraction(f32x16 x) { return _mm512_reduce_ps(x, 9); }
// x * 2^floor(power)
EMBATCH_INLINE f32x16 scale(f32x16 x, f32x16 power) { return _mm512_scalef_ps(x, power); }
// The sum of all: always this tree.
EMBATCH_INLINE float sum(f32x16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
// A bit for each x that is not between low and high; NaN is not.
EMBATCH_INLINE unsigned outside(f32x16 x, float low, float high) {
  const unsigned above = _mm512_cmp_ps_mask(x, all(low), _CMP_GT_OQ);
  return 0xffffu & ~(above & _mm512_cmp_ps_mask(x, all(high), _CMP_LT_OQ));
}
// p[0], p[stride], p[2 * stride], ...
EMBATCH_INLINE f32x16 gather(const float *p, int stride) {
  const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(places, _mm512_set1_epi32(stride)), p, 4);
}

EMBATCH_INLINE bf16x32 load(const bf16 *p) { return _mm512_loadu_si512(p); }
EMBATCH_INLINE bf16x32 load_if(bool there, const bf16 *p) {
  return _mm512_maskz_loadu_epi32(there ? 0xffff : 0, p);
}
EMBATCH_INLINE void store(bf16 *p, bf16x32 x) { _mm512_storeu_si512(p, x); }
EMBATCH_INLINE bf16x32 narrow(f32x16 low, f32x16 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
EMBATCH_INLINE f32x16 low(bf16x32 x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
EMBATCH_INLINE f32x16 high(bf16x32 x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}
// Two rows of 32 as pairs: the first 16 columns a0 b0 a1 b1 ... into `first`, the other 16 into `second`.
EMBATCH_INLINE void interleave(bf16x32 a, bf16x32 b, bf16 *first, bf16 *second) {
  // Columns i of both as dwords: the low words of a and the high words of b, then the other way round.
  const __m512i even = _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
  const __m512i odd = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
  const __m512i low_places = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high_places = _mm512_add_epi32(low_places, _mm512_set1_epi32(8));
  store(first, _mm512_permutex2var_epi32(even, low_places, odd));
  store(second, _mm512_permutex2var_epi32(even, high_places, odd));
}
// Sixteen rows of sixteen pairs, transposed: pair p of row r becomes pair r of row p.
EMBATCH_INLINE void transpose(bf16x32 (&r)[16], bf16 *to) {
  __m512i t[16];
  EMBATCH_UNROLL(8)
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  EMBATCH_UNROLL(4)
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  EMBATCH_UNROLL(4)
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  EMBATCH_UNROLL(4)
  for (int i = 0; i < 4; i++) {
    store(to + i * 32, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
    store(to + (4 + i) * 32, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
    store(to + (8 + i) * 32, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    store(to + (12 + i) * 32, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
  }
}

#else  // the same, one number at a time

struct f32x16 {
  float at[16];
};
struct bf16x32 {
  bf16 at[32];
};

template <class F>
EMBATCH_INLINE f32x16 each(F f) {
  f32x16 x;
  for (int i = 0; i < 16; i++) x.at[i] = f(i);
  return x;
}
EMBATCH_INLINE f32x16 all(float x) {
  return each([&](int) { return x; });
}
EMBATCH_INLINE f32x16 zero() { return all(0); }
EMBATCH_INLINE f32x16 load(const float *p) {
  f32x16 x;
  memcpy(x.at, p, 64);
  return x;
}
EMBATCH_INLINE void store(float *p, const f32x16 &x) { memcpy(p, x.at, 64); }
EMBATCH_INLINE f32x16 add(const f32x16 &a, const f32x16 &b) {
  return each([&](int i) { return a.at[i] + b.at[i]; });
}
EMBATCH_INLINE f32x16 sub(const f32x16 &a, const f32x16 &b) {
  return each([&](int i) { return a.at[i] - b.at[i]; });
}
EMBATCH_INLINE f32x16 mul(const f32x16 &a, const f32x16 &b) {
  return each([&](int i) { return a.at[i] * b.at[i]; });
}
EMBATCH_INLINE f32x16 div(const f32x16 &a, const f32x16 &b) {
  return each([&](int i) { return a.at[i] / b.at[i]; });
}
EMBATCH_INLINE f32x16 fma(const f32x16 &a, const f32x16 &b, const f32x16 &c) {
  return each([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
}
EMBATCH_INLINE f32x16 larger(const f32x16 &a, const f32x16 &b) {
  return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
EMBATCH_INLINE f32x16 within(const f32x16 &x, float limit) {
  return each([&](int i) { return copysignf(fabsf(x.at[i]) < limit ? fabsf(x.at[i]) : limit, x.at[i]); });
}
EMBATCH_INLINE f32x16 fraction(const f32x16 &x) {
  return each([&](int i) {
    if (isinf(x.at[i])) return 0.0f;
    const float whole = floorf(x.at[i]), near = x.at[i] - whole;
    if (near == 0) return -0.0f;  // what is exact has the sign of its rounding
    // Exact in double precision, but for what is so close to 1 that it has to be below.
    const bool above = near >= 1 || near > static_cast<double>(x.at[i]) - static_cast<double>(whole);
    return above ? nextafterf(near, 0) : near;
  });
}
EMBATCH_INLINE f32x16 scale(const f32x16 &x, const f32x16 &power) {
  return each([&](int i) {
    const float whole = floorf(power.at[i]);
    if (isnan(whole)) return whole;
    // Exact in double precision; what is too small for a float becomes zero on the way back.
    const int exponent = whole > 400 ? 400 : whole < -400 ? -400 : static_cast<int>(whole);
    return static_cast<float>(ldexp(static_cast<double>(x.at[i]), exponent));
  });
}
EMBATCH_INLINE float sum(const f32x16 &x) {
  float t[16];
  memcpy(t, x.at, 64);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) t[i] += t[i + half];
  return t[0];
}
EMBATCH_INLINE unsigned outside(const f32x16 &x, float low, float high) {
  unsigned bits = 0;
  for (int i = 0; i < 16; i++) bits |= static_cast<unsigned>(!(x.at[i] > low && x.at[i] < high)) << i;
  return bits;
}
EMBATCH_INLINE f32x16 gather(const float *p, int stride) {
  return each([&](int i) { return p[i * stride]; });
}

EMBATCH_INLINE bf16x32 load(const bf16 *p) {
  bf16x32 x;
  memcpy(x.at, p, 64);
  return x;
}
EMBATCH_INLINE bf16x32 load_if(bool there, const bf16 *p) { return there ? load(p) : bf16x32{}; }
EMBATCH_INLINE void store(bf16 *p, const bf16x32 &x) { memcpy(p, x.at, 64); }
EMBATCH_INLINE bf16x32 narrow(const f32x16 &low, const f32x16 &high) {
  bf16x32 x;
  for (int i = 0; i < 16; i++) x.at[i] = narrow(low.at[i]), x.at[16 + i] = narrow(high.at[i]);
  return x;
}
EMBATCH_INLINE f32x16 low(const bf16x32 &x) {
  return each([&](int i) { return widen(x.at[i]); });
}
EMBATCH_INLINE f32x16 high(const bf16x32 &x) {
  return each([&](int i) { return widen(x.at[16 + i]); });
}
EMBATCH_INLINE void interleave(const bf16x32 &a, const bf16x32 &b, bf16 *first, bf16 *second) {
  for (int i = 0; i < 16; i++) {
    first[2 * i] = a.at[i], first[2 * i + 1] = b.at[i];
    second[2 * i] = a.at[16 + i], second[2 * i + 1] = b.at[16 + i];
  }
}
EMBATCH_INLINE void transpose(bf16x32 (&r)[16], bf16 *to) {
  for (int p = 0; p < 16; p++)
    for (int row = 0; row < 16; row++) memcpy(to + p * 32 + 2 * row, r[row].at + 2 * p, 4);
}

#endif

}  // namespace embatch
