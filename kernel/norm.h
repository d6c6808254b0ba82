// What happens to whole rows: embeddings in, layer norms between, pooling out. All in float32.
#pragma once

#include "layout.h"

namespace embatch {

struct Norm {
  const float *weight, *bias;
  float epsilon;
};

// Calls f(0), f(1), ... f(count - 1), written out one after the other where the number N of them is known.
template <int N, class F>
EMBATCH_INLINE void each_panel(int count, F f) {
  if (N) {
    EMBATCH_UNROLL(32)
    for (int p = 0; p < N; p++) f(p);
  } else {
    for (int p = 0; p < count; p++) f(p);
  }
}

// x = norm(C + x) for each row. `N` is the number of panels, so that a row of a usual size stays in registers;
// 0 for any other, `panels` of them.
template <int N>
void normalize_rows(Panels<const float> C, Panels<bf16> x, int panels, int rows, const Norm &norm) {
  constexpr int room = N ? N : kMaxHidden / kPanel;
  const float columns = static_cast<float>(panels * kPanel);
  for (int row = 0; row < rows; row++) {
    f32x16 v[2 * room], s0 = zero(), s1 = zero();
    each_panel<N>(panels, [&](int p) EMBATCH_FLATTEN {
      const bf16x32 before = load(x.at(p, row));
      const float *c = C.at(p, row);
      v[2 * p] = add(load(c), low(before)), v[2 * p + 1] = add(load(c + 16), high(before));
      s0 = add(s0, v[2 * p]), s1 = add(s1, v[2 * p + 1]);
    });
    // The mean first, then squares of what differs from it: their difference would lose what a large mean leaves.
    const f32x16 mean = all(sum(add(s0, s1)) / columns);
    f32x16 q0 = zero(), q1 = zero();
    each_panel<N>(panels, [&](int p) EMBATCH_FLATTEN {
      v[2 * p] = sub(v[2 * p], mean), v[2 * p + 1] = sub(v[2 * p + 1], mean);
      q0 = fma(v[2 * p], v[2 * p], q0), q1 = fma(v[2 * p + 1], v[2 * p + 1], q1);
    });
    const f32x16 factor = all(1.0f / sqrtf(sum(add(q0, q1)) / columns + norm.epsilon));
    each_panel<N>(panels, [&](int p) EMBATCH_FLATTEN {
      const float *weight = norm.weight + p * kPanel, *bias = norm.bias + p * kPanel;
      store(x.at(p, row), narrow(fma(mul(v[2 * p], factor), load(weight), load(bias)),
                                 fma(mul(v[2 * p + 1], factor), load(weight + 16), load(bias + 16))));
    });
  }
  phase_ends();
}

inline void normalize(Panels<const float> C, Panels<bf16> x, int panels, int rows, const Norm &norm) {
  switch (panels) {
    case 12: return normalize_rows<12>(C, x, panels, rows, norm);
    case 16: return normalize_rows<16>(C, x, panels, rows, norm);
    case 24: return normalize_rows<24>(C, x, panels, rows, norm);
    case 32: return normalize_rows<32>(C, x, panels, rows, norm);
    default: return normalize_rows<0>(C, x, panels, rows, norm);
  }
}

struct Tables {
  const float *words, *positions;  // [..][hidden]
};

// C = words + positions and x = 0 for the rows from `row` of one text: what the first norm takes.
inline void embed(const Tables &tables, const int32_t *ids, int tokens, int panels, Panels<float> C, Panels<bf16> x,
                  int row) {
  constexpr int ahead = 4;  // words lie anywhere in a table of many megabytes
  const size_t hidden = static_cast<size_t>(panels) * kPanel;
  for (int t = 0; t < tokens; t++, row++) {
    if (t + ahead < tokens)
      for (size_t i = 0; i < hidden; i += 16)
        __builtin_prefetch(tables.words + static_cast<size_t>(ids[t + ahead]) * hidden + i, 0, 3);
    const float *word = tables.words + static_cast<size_t>(ids[t]) * hidden;
    const float *position = tables.positions + static_cast<size_t>(t) * hidden;
    for (int p = 0; p < panels; p++, word += kPanel, position += kPanel) {
      store(C.at(p, row), add(load(word), load(position)));
      store(C.at(p, row) + 16, add(load(word + 16), load(position + 16)));
      store(x.at(p, row), narrow(zero(), zero()));
    }
  }
}

// The vector of the text of rows `first` to `end`: their mean, or the first alone; of length 1 if wanted, where
// it has a length.
inline void pool(Panels<const bf16> x, int panels, int first, int end, bool mean, bool unit, float *vector) {
  if (!mean) end = first + 1;
  const float count = static_cast<float>(end - first);
  f32x16 squares = zero();
  for (int p = 0; p < panels; p++) {
    f32x16 a = zero(), b = zero();
    for (int row = first; row < end; row++) {
      const bf16x32 both = load(x.at(p, row));
      a = add(a, low(both)), b = add(b, high(both));
    }
    a = div(a, all(count)), b = div(b, all(count));
    squares = fma(a, a, fma(b, b, squares));
    store(vector + p * kPanel, a), store(vector + p * kPanel + 16, b);
  }
  if (!unit) return;
  const float length = sqrtf(sum(squares));
  const f32x16 factor = all(1.0f / (length > 1e-12f ? length : length == length ? 1e-12f : length));
  for (int i = 0; i < panels * kPanel; i += 16) store(vector + i, mul(load(vector + i), factor));
}

}  // namespace embatch
