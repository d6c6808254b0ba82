// The reference of `fuzz.cpp`: an encoder in double precision, one text after the other, as a textbook has it.
#pragma once

#include "fuzz_draw.h"

namespace fuzz {

using Numbers = std::vector<double>;

inline double product(const double *a, const double *b, int count) {
  double sum = 0;
  for (int i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}

inline double rounded(float x) {  // to the nearest bfloat16, ties to even, denormals to zero
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = std::isnormal(x) ? (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000 : 0;
  memcpy(&x, &bits, 4);
  return x;
}

// x W' + bias for each row of x.
inline Numbers affine(const Numbers &x, int inputs, const float *const *pair, int outputs) {
  const int rows = static_cast<int>(x.size()) / inputs;
  Numbers y(rows * outputs), w(inputs);
  for (int n = 0; n < outputs; n++) {
    for (int k = 0; k < inputs; k++) w[k] = rounded(pair[0][n * inputs + k]);
    for (int row = 0; row < rows; row++) y[row * outputs + n] = pair[1][n] + product(&x[row * inputs], &w[0], inputs);
  }
  return y;
}

// norm(x + y)
inline void normalize(Numbers &x, const Numbers &y, int columns, const float *const *pair, double epsilon) {
  for (size_t i = 0; i < y.size(); i++) x[i] += y[i];
  for (size_t first = 0; first < x.size(); first += columns) {
    double *row = &x[first], mean = 0, variance = 0;
    for (int i = 0; i < columns; i++) mean += row[i] / columns;
    for (int i = 0; i < columns; i++) variance += (row[i] - mean) * (row[i] - mean) / columns;
    for (int i = 0; i < columns; i++) row[i] = (row[i] - mean) / sqrt(variance + epsilon) * pair[0][i] + pair[1][i];
  }
}

// Adds to *exact how many softmax rows leave [2^-100, 2^100] however one rounds.
inline Numbers attention(const Numbers &q, const Numbers &k, const Numbers &v, int hidden, int d, int64_t *exact) {
  const int rows = static_cast<int>(q.size()) / hidden;
  Numbers o(q.size()), powers(rows);
  for (int column = 0; column < hidden; column += d)
    for (int i = 0; i < rows; i++) {
      const int at = i * hidden + column;
      double most = -INFINITY, longest = 0, total = 0;
      for (int j = 0; j < rows; j++) {
        const double *key = &k[j * hidden + column];
        most = std::max(most, powers[j] = product(&q[at], key, d) / sqrt(d));
        longest = std::max(longest, product(key, key, d));
      }
      for (double &power : powers) total += power = exp(power - most);
      for (int j = 0; j < rows; j++)
        for (int n = 0; n < d; n++) o[at + n] += powers[j] / total * v[j * hidden + column + n];
      // Rounding moves a score by a hundredth of the product of both lengths or so.
      const double error = 0.05 * sqrt(product(&q[at], &q[at], d) * longest / d);
      *exact += M_LOG2E * (fabs(most + log(total)) - error) > 101;
    }
  return o;
}

// The vector of a text with tokens. Counts the softmax rows of the first layer: later ones depend on this one's.
inline Numbers encode(const Drawn &drawn, const Text &text, int64_t *exact) {
  const embatch_amx_shape &s = drawn.shape;
  const int h = s.hidden;
  const float *const *t = drawn.tensors.data();
  Numbers x(text.size() * h), vector(h);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<double>(t[0][text[i / h] * h + i % h]) + t[1][i];
  normalize(x, {}, h, t + 2, s.epsilon);
  t += EMBATCH_HEAD_TENSORS;
  for (int i = 0; i < s.layers; i++, t += EMBATCH_LAYER_TENSORS) {
    int64_t ignored = 0;
    const Numbers q = affine(x, h, t + kQuery, h), k = affine(x, h, t + kKey, h), v = affine(x, h, t + kValue, h);
    const Numbers o = attention(q, k, v, h, h / s.heads, i ? &ignored : exact);
    normalize(x, affine(o, h, t + kOutput, h), h, t + kMiddle, s.epsilon);
    Numbers inner = affine(x, h, t + kInner, s.inner);
    for (double &number : inner) number *= 0.5 * (1 + erf(number * M_SQRT1_2));
    normalize(x, affine(inner, s.inner, t + kOuter, h), h, t + kEnd, s.epsilon);
  }
  const size_t count = s.pooling == EMBATCH_MEAN ? x.size() : h;
  for (size_t i = 0; i < count; i++) vector[i % h] += x[i] * h / count;
  const double length = sqrt(product(&vector[0], &vector[0], h));
  for (double &number : vector) number /= s.normalize ? std::max(length, 1e-12) : 1;
  return vector;
}

}  // namespace fuzz
