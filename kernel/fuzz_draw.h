// Random models and texts for `fuzz.cpp`: what is usual, and what is strange about weights and lengths.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "embatch_amx.h"

namespace fuzz {

using Text = std::vector<int32_t>;
using Floats = std::vector<float>;

// SplitMix64. Nothing of the C library, whose random numbers and functions differ from machine to machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int below(size_t end) { return static_cast<int>(bits() % end); }
  int between(int low, int high) { return low + below(high - low + 1); }  // both included
  bool one_in(int n) { return !below(n); }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f; }
  // The sum of four: near enough to a normal distribution of mean 0 and deviation 1.
  float normal() {
    const uint64_t b = bits();
    const int64_t sum = (b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48);
    return static_cast<float>(sum - 131070) * (1.7320508f / 65536);
  }
  template <class T>
  T one_of(std::initializer_list<T> all) {
    return all.begin()[below(all.size())];
  }

 private:
  uint64_t state_;
};

// What is strange about the weights of a model.
enum Kind {
  kOrdinary,
  kNothing,   // all or some tensors are zeros, or denormals, which count as zeros
  kConstant,  // the columns of word 0 and of all positions are equal: nothing is left of them after the mean
  kOverflow,  // word 0 is too large for the norm: its texts become NaN, which the others must not notice
  kExtreme,   // queries and keys are so large that no softmax can do without its maximum
};

// Tensors of a layer.
enum { kQuery = 0, kKey = 2, kValue = 4, kOutput = 6, kMiddle = 8, kInner = 10, kOuter = 12, kEnd = 14 };

struct Drawn {
  Kind kind;
  embatch_amx_shape shape;
  std::vector<Floats> numbers;         // of each tensor, after a NaN: they are not aligned, and
  std::vector<const float *> tensors;  // nobody may read before them

  // Products in the computation of a text.
  double work(double tokens) const {
    const double h = shape.hidden;
    return tokens * shape.layers * (4 * h * h + 2 * h * shape.inner + 2 * h * tokens);
  }
  int longest() const { return std::min(shape.positions, EMBATCH_BLOCK); }
};

inline embatch_amx_shape draw_shape(Random &random) {
  embatch_amx_shape s = {};
  const bool large = random.one_in(12);
  s.hidden = large ? random.one_of({384, 512, 768, 1024}) : 32 * random.between(1, random.one_in(2) ? 3 : 8);
  s.inner = 32 * random.between(1, random.one_in(2) ? s.hidden / 32 : s.hidden / 8);
  s.layers = large ? 1 : random.between(1, 3);
  s.heads = s.hidden / (s.hidden % 64 == 0 && random.one_in(2) ? 64 : 32);
  s.vocabulary = random.between(1, 64);
  s.positions = random.one_in(3) ? random.between(500, 640) : random.between(1, 512);
  s.pooling = random.one_of({EMBATCH_MEAN, EMBATCH_CLS});
  s.normalize = random.below(2);
  s.epsilon = random.one_of({1e-12f, 1e-5f});
  return s;
}

inline Drawn draw_model(Random &random) {
  const Kind kind = random.one_of({kOrdinary, kOrdinary, kOrdinary, kOrdinary, kNothing, kNothing, kConstant,
                                   kOverflow, kExtreme, kExtreme});
  Drawn drawn = {kind, draw_shape(random), {}, {}};
  const int h = drawn.shape.hidden, inner = drawn.shape.inner, often = random.between(1, 3);
  const float extreme = 100.0f / random.between(1, 20), nothing = random.one_of({0.0f, 1e-39f});
  const auto add = [&](int rows, int columns, float mean, float deviation) {
    if (kind == kNothing && random.one_in(often)) mean = 0, deviation = nothing;
    Floats numbers(1 + rows * columns, NAN);
    for (int i = 1; i <= rows * columns; i++) numbers[i] = mean + deviation * random.normal();
    drawn.numbers.push_back(std::move(numbers));
  };
  const auto norm = [&] { add(1, h, 1, 0.2f), add(1, h, 0, 0.1f); };
  const auto matrix = [&](int outputs, int inputs, float factor) {
    add(outputs, inputs, 0, factor * random.uniform(0.5f, 2) / sqrtf(static_cast<float>(inputs)));
    add(1, outputs, 0, 0.1f);
  };
  add(drawn.shape.vocabulary, h, 0, 0.5f), add(drawn.shape.positions, h, 0, 0.5f), norm();
  for (int i = 0; i < drawn.shape.layers; i++) {
    for (int j = 0; j < 4; j++) matrix(h, h, kind == kExtreme && j < 2 ? extreme : 1);
    norm(), matrix(inner, h, 1), matrix(h, inner, 1), norm();
  }
  Floats &words = drawn.numbers[0], &positions = drawn.numbers[1];
  if (kind == kConstant) std::fill_n(&words[1], h, 0.75f), std::fill(positions.begin() + 1, positions.end(), 0.125f);
  if (kind == kOverflow) std::fill_n(&words[1], h, 3e38f);
  for (const Floats &numbers : drawn.numbers) drawn.tensors.push_back(&numbers[1]);
  return drawn;
}

// Some texts, of lengths at which the kernel changes its ways; now and then more of them than a block takes. As many
// as the sanitised build computes in a second or so.
inline std::vector<Text> draw_texts(Random &random, const Drawn &drawn) {
  const bool many = random.one_in(24);
  double left = random.one_in(8) ? 1e8 : 1.5e7;
  std::vector<Text> texts(many ? random.between(400, 1100) : random.between(0, 12));
  for (Text &text : texts) {
    const int edge = random.one_of({0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 512});
    int tokens = many ? random.below(3) : random.one_in(4) ? random.between(0, 512) : edge;
    tokens = std::min(tokens, drawn.longest());
    while (drawn.work(tokens) > left) tokens--;
    left -= drawn.work(tokens);
    for (int i = 0; i < tokens; i++) text.push_back(random.below(drawn.shape.vocabulary));
  }
  return texts;
}

}  // namespace fuzz
