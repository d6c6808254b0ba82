// Self-attention of one head: O = softmax(Q K') V for each text of a block, 16 queries at a time.
//
// Q comes multiplied by log2(e) / sqrt(columns), folded into its weights, so the softmax is of powers of two.
// It is computed without its row maximum: P = 2^S as it is, then O = (P V) / (P 1). Products with V and with
// a tile of ones run on the tile unit, so the sum is of the same rounded P, and stands in every column.
// Float32 holds 2^S for all S between -126 and 127. Where a row's sum leaves [2^-100, 2^100] that row is done
// again with its exact maximum: a few rows in ten thousand of real text, and any row of a strange model.
//
// Keys beyond the end of a text need no mask: their rows of V and of the ones are zeros.
//
//     K per 16 keys:  16 rows of pairs, transposed: a tile of pairs for each panel      keys[16 keys][panel]
//     V per 32 keys:  rows two by two as pairs: two tiles of 16 columns for each panel  values[32 keys][panel][2]
//     S, P:           16 queries x 32 keys at a time
//
// Three things run beside each other: S of the next 32 keys and P V of the previous 16 queries on the tile
// unit, and the powers of the current 32 keys on the vector unit.
#pragma once

#include "layout.h"
#include "numerics.h"

namespace embatch {

constexpr float kLowSum = 0x1p-100f, kHighSum = 0x1p100f;

// Stores and tile loads whose addresses agree in their lowest 12 bits wait for one another. What is written for
// one 32 keys and read for the next is therefore kept in two copies or halves 2 KB apart.
struct alignas(4096) AttentionScratch {
  struct Ones {
    bf16 tile[kTileNumbers];
    bf16 gap[kTileNumbers];
  };
  bf16 keys[kBlock / 16 * 2 * kTileNumbers];
  bf16 values[kBlock / 32 * 4 * kTileNumbers];
  bf16 powers[2][kBlock / 32 * 2 * kTileNumbers];
  Ones ones[2];
  Ones last[2];  // for the last 32 keys of a text: 1 where there is a key
  float scores[2][kTileRows * 32];
  float mixed[kTileRows * 64];
  float sums[kTileRows * 16];

  void prepare() {
    for (Ones &copy : ones)
      for (bf16 &one : copy.tile) one = 0x3f80;
  }
};

// Registers are zeroed right before their product here, which `matmul.h` avoids: loading zeros instead was no faster
// in these short chains.
//
// S of 32 keys (16 if there are no more): registers 2 and 3 for a head of one panel, whose queries stay in 5;
// register 5 for one of two panels.
template <int Panels_>
EMBATCH_INLINE void scores_of(const AttentionScratch &z, const bf16 *q, size_t stride, int keys32, int tiles16,
                              float *to) {
  const bool two = 2 * keys32 + 1 < tiles16;
  const bf16 *k = z.keys + static_cast<size_t>(2 * keys32) * Panels_ * kTileNumbers;
  if (Panels_ == 1) {
    TILE_ZERO(2);
    TILE_LOAD(7, k, 64);
    TILE_PRODUCT(2, 5, 7);
    if (two) {
      TILE_ZERO(3);
      TILE_LOAD(7, k + kTileNumbers, 64);
      TILE_PRODUCT(3, 5, 7);
    }
    TILE_STORE(2, to, 128);
    if (two) TILE_STORE(3, to + 16, 128);
  } else {
    for (int half = 0; half < 1 + two; half++, k += 2 * kTileNumbers) {
      TILE_ZERO(5);
      TILE_LOAD(6, q, 64);
      TILE_LOAD(7, k, 64);
      TILE_PRODUCT(5, 6, 7);
      TILE_LOAD(6, q + stride, 64);
      TILE_LOAD(7, k + kTileNumbers, 64);
      TILE_PRODUCT(5, 6, 7);
      TILE_STORE(5, to + 16 * half, 128);
    }
  }
}

// Registers 0 to 2 Panels_ - 1 += P V and register 4 += P 1 of 32 keys.
template <int Panels_>
EMBATCH_INLINE void mix(const AttentionScratch &z, const bf16 *powers, int keys32, int tiles32) {
  const bf16 *v = z.values + static_cast<size_t>(keys32) * Panels_ * 2 * kTileNumbers;
  TILE_LOAD(6, powers + static_cast<size_t>(keys32) * 2 * kTileNumbers, 64);
  TILE_LOAD(7, v, 64);
  TILE_PRODUCT(0, 6, 7);
  TILE_LOAD(7, v + kTileNumbers, 64);
  TILE_PRODUCT(1, 6, 7);
  if (Panels_ == 2) {
    TILE_LOAD(7, v + 2 * kTileNumbers, 64);
    TILE_PRODUCT(2, 6, 7);
    TILE_LOAD(7, v + 3 * kTileNumbers, 64);
    TILE_PRODUCT(3, 6, 7);
  }
  const AttentionScratch::Ones *ones = keys32 == tiles32 - 1 ? z.last : z.ones;
  TILE_LOAD(7, ones[keys32 & 1].tile, 64);
  TILE_PRODUCT(4, 6, 7);
}

EMBATCH_INLINE void powers_of(const float *scores, bf16 *to, bool two) {
  EMBATCH_UNROLL(4)
  for (int row = 0; row < kTileRows; row++)
    store(to + row * 32, narrow(exp2(load(scores + row * 32)), two ? exp2(load(scores + row * 32 + 16)) : zero()));
}

// One row in float32 with its exact maximum.
template <int Panels_>
__attribute__((noinline)) void exact_row(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, size_t stride,
                                         int keys) {
  alignas(64) float s[kBlock];
  f32x16 query[2 * Panels_];
  for (int p = 0; p < Panels_; p++) {
    const bf16x32 both = load(q + p * stride);
    query[2 * p] = low(both), query[2 * p + 1] = high(both);
  }
  float most = -INFINITY;
  for (int j = 0; j < keys; j++) {
    f32x16 product = zero();
    for (int p = 0; p < Panels_; p++) {
      const bf16x32 both = load(k + p * stride + static_cast<size_t>(j) * kPanel);
      product = fma(query[2 * p], low(both), fma(query[2 * p + 1], high(both), product));
    }
    s[j] = sum(product);
    if (!(s[j] <= most)) most = s[j];
  }
  for (int j = keys; j % 16; j++) s[j] = -INFINITY;
  f32x16 total = zero();
  for (int j = 0; j < keys; j += 16) {
    const f32x16 power = exp2(sub(load(s + j), all(most)));
    store(s + j, power);
    total = add(total, power);
  }
  const f32x16 factor = all(1.0f / sum(total));
  for (int p = 0; p < Panels_; p++) {
    f32x16 x = zero(), y = zero();
    for (int j = 0; j < keys; j++) {
      const bf16x32 both = load(v + p * stride + static_cast<size_t>(j) * kPanel);
      x = fma(all(s[j]), low(both), x), y = fma(all(s[j]), high(both), y);
    }
    store(o + p * stride, narrow(mul(x, factor), mul(y, factor)));
  }
}

// Keys and values of one text of `keys` rows into the order of tiles.
template <int Panels_>
void arrange(const bf16 *k, const bf16 *v, size_t stride, int keys, AttentionScratch &z) {
  for (int first = 0; first < keys; first += 16)
    for (int p = 0; p < Panels_; p++) {
      bf16x32 rows[16];
      const bf16 *from = k + p * stride + static_cast<size_t>(first) * kPanel;
  EMBATCH_UNROLL(16)
      for (int i = 0; i < 16; i++) rows[i] = load_if(first + i < keys, from + i * kPanel);
      transpose(rows, z.keys + (static_cast<size_t>(first / 16) * Panels_ + p) * kTileNumbers);
    }
  for (int first = 0; first < keys; first += 32)
    for (int p = 0; p < Panels_; p++) {
      const bf16 *from = v + p * stride + static_cast<size_t>(first) * kPanel;
      bf16 *to = z.values + (static_cast<size_t>(first / 32) * Panels_ + p) * 2 * kTileNumbers;
  EMBATCH_UNROLL(4)
      for (int pair = 0; pair < 16; pair++)
        interleave(load_if(first + 2 * pair < keys, from + 2 * pair * kPanel),
                   load_if(first + 2 * pair + 1 < keys, from + (2 * pair + 1) * kPanel), to + pair * 32,
                   to + kTileNumbers + pair * 32);
    }
  const int left = keys - (keys - 1) / 32 * 32;
  for (int pair = 0; pair < 16; pair++)
    interleave(load_if(2 * pair < left, z.ones[0].tile), load_if(2 * pair + 1 < left, z.ones[0].tile),
               z.last[0].tile + pair * 32, z.last[1].tile + pair * 32);
}

// Divides the rows of registers 0 to 3 by their sums in 4 and writes them; returns the rows whose sum was too far off.
template <int Panels_>
EMBATCH_INLINE unsigned finish(AttentionScratch &z, bf16 *o, size_t stride, int rows) {
  constexpr int width = Panels_ * kPanel;
  TILE_STORE(4, z.sums, 64);
  TILE_STORE(0, z.mixed, 4 * width);
  TILE_STORE(1, z.mixed + 16, 4 * width);
  if (Panels_ == 2) {
    TILE_STORE(2, z.mixed + 32, 4 * width);
    TILE_STORE(3, z.mixed + 48, 4 * width);
  }
  const f32x16 totals = gather(z.sums, 16);
  alignas(64) float factors[16];
  store(factors, div(all(1.0f), totals));
  for (int row = 0; row < rows; row++) {
    const f32x16 factor = all(factors[row]);
    for (int p = 0; p < Panels_; p++) {
      const float *from = z.mixed + row * width + p * kPanel;
      store(o + p * stride + row * kPanel, narrow(mul(load(from), factor), mul(load(from + 16), factor)));
    }
  }
  return outside(totals, kLowSum, kHighSum) & ((1u << rows) - 1);
}

// One text: rows 0 to keys - 1 of q, k, v and o. Returns how many rows needed the exact form.
template <int Panels_>
int attend_text(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, size_t stride, int keys,
                AttentionScratch &z) {
  const int tiles16 = (keys + 15) / 16, tiles32 = (keys + 31) / 32;
  int exact = 0;
  arrange<Panels_>(k, v, stride, keys, z);
  phase_ends();
  if (Panels_ == 1) TILE_LOAD(5, q, 64);
  int flip = 0;
  scores_of<Panels_>(z, q, stride, 0, tiles16, z.scores[flip]);
  for (int i = 0; i <= tiles16; i++) {  // powers of query tile i, P V of query tile i - 1
    const bf16 *queries = q + static_cast<size_t>(i) * kTileNumbers;
    const bf16 *previous = z.powers[(i + 1) & 1];
    if (i) {
      TILE_ZERO(0);
      TILE_ZERO(1);
      if (Panels_ == 2) {
        TILE_ZERO(2);
        TILE_ZERO(3);
      }
      TILE_ZERO(4);
    }
    for (int c = 0; c < tiles32; c++) {
      if (i < tiles16) {
        if (c + 1 < tiles32) {
          scores_of<Panels_>(z, queries, stride, c + 1, tiles16, z.scores[flip ^ 1]);
        } else if (i + 1 < tiles16) {
          if (Panels_ == 1) TILE_LOAD(5, queries + kTileNumbers, 64);
          scores_of<Panels_>(z, queries + kTileNumbers, stride, 0, tiles16, z.scores[flip ^ 1]);
        }
      }
      if (i) mix<Panels_>(z, previous, c, tiles32);
      if (i < tiles16) {
        powers_of(z.scores[flip], z.powers[i & 1] + c * 2 * kTileNumbers, 2 * c + 1 < tiles16);
        flip ^= 1;
        phase_ends();
      }
    }
    if (!i) continue;
    const int first = (i - 1) * kTileRows, rows = keys - first < kTileRows ? keys - first : kTileRows;
    unsigned again = finish<Panels_>(z, o + static_cast<size_t>(first) * kPanel, stride, rows);
    for (; __builtin_expect(again != 0, 0); again &= again - 1, exact++) {
      const size_t row = static_cast<size_t>(first + __builtin_ctz(again)) * kPanel;
      exact_row<Panels_>(q + row, k, v, o + row, stride, keys);
    }
  }
  phase_ends();
  return exact;
}

// A head of `panels` panels for all texts of a block: text i has the rows starts[i] to starts[i + 1].
inline int attend(int panels, Panels<const bf16> q, Panels<const bf16> k, Panels<const bf16> v, Panels<bf16> o,
                  const int *starts, int texts, AttentionScratch &z) {
  int exact = 0;
  for (int text = 0; text < texts; text++) {
    const int row = starts[text], keys = starts[text + 1] - row;
    exact += panels == 1
                 ? attend_text<1>(q.at(0, row), k.at(0, row), v.at(0, row), o.at(0, row), q.stride, keys, z)
                 : attend_text<2>(q.at(0, row), k.at(0, row), v.at(0, row), o.at(0, row), q.stride, keys, z);
  }
  return exact;
}

}  // namespace embatch
