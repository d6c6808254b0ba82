// Random models and texts: the library against a plain encoder in double precision, and against its own promises.
//
//     fuzz [seconds] [seed]     10 seconds and seed 1 where nothing is said
//
// Cases are numbered `seed`, `seed` + 1, ... until the time is over; a case depends on its number alone, on every
// machine. With 0 seconds only the first one runs: `fuzz 0 4711` repeats case 4711. Exits 0 if all is well, 1 on a
// fault, 2 where the library cannot run. The digest is of all vectors: builds that compute the same agree in it.
//
// Vectors are compared with the reference by their cosine. Both sides round weights to bfloat16, so what differs is
// the rounding of activations, and of the query's weights, which the kernel multiplies first. With logits in the
// hundreds the softmax turns such a rounding into another key: there vectors only have to be finite.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>
#include <vector>

#include <immintrin.h>  // MXCSR only

#include "fuzz_reference.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using namespace fuzz;

constexpr double kCosine = 0.995, kLength = 0.05;  // the least cosine; how far a length may be off

char now_running[200];  // the case: said before whatever ends the program

void say_case() {
  if (write(STDERR_FILENO, now_running, strlen(now_running)) < 0) return;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char *what, ...) {
  va_list values;
  va_start(values, what);
  say_case();
  vfprintf(stderr, what, values);
  fputc('\n', stderr);
  std::_Exit(1);  // leaks are of no interest any more
}

void expect(const char *what, int status, int wanted) {
  if (status != wanted) fail("%s: status %d instead of %d", what, status, wanted);
}

struct Seen {
  int64_t cases = 0, texts = 0, exact_rows = 0, exact_cases = 0;
  double cosine = 1;
  uint64_t now = 0, least = 0;  // the case that runs, the case of this cosine
  uint64_t digest = 0xcbf29ce484222325;

  // FNV-1a, word by word. Every NaN counts as the same.
  void add(const Floats &vectors) {
    for (float x : vectors) {
      uint32_t bits;
      memcpy(&bits, &x, 4);
      digest = (digest ^ (std::isnan(x) ? 0x7fc00000 : bits)) * 0x100000001b3;
    }
  }
};

void *load(const char *what, const embatch_amx_shape &shape, const float *const *tensors, int wanted) {
  char before;
  void *model = &before;
  expect(what, embatch_amx_load(&shape, tensors, &model), wanted);
  if (wanted != EMBATCH_OK && model != &before) fail("%s: a model was set", what);
  return model;
}

Floats forward(const Drawn &drawn, void *model, const std::vector<Text> &texts, int wanted = EMBATCH_OK) {
  Text ids(3, -7);  // belong to no text
  std::vector<int64_t> offsets(1, 3);
  for (const Text &text : texts) {
    ids.insert(ids.end(), text.begin(), text.end());
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
  const Text ids_before = ids;
  const std::vector<int64_t> offsets_before = offsets;
  const Floats guard(37, -1234.5f);
  Floats vectors(texts.size() * drawn.shape.hidden + 2 * guard.size(), guard[0]);
  float *const first = &vectors[guard.size()], *const end = first + texts.size() * drawn.shape.hidden;
  const int count = static_cast<int>(texts.size());
  expect("forward", embatch_amx_forward(model, ids.data(), offsets.data(), count, first), wanted);
  if (ids != ids_before || offsets != offsets_before) fail("forward changed what it read");
  if (Floats(first - guard.size(), first) != guard || Floats(end, end + guard.size()) != guard)
    fail("forward wrote outside the vectors");
  return Floats(first, end);
}

void check_vector(const Drawn &drawn, const char *text, const Numbers &ours, const Numbers &wanted, Seen *seen) {
  const int h = drawn.shape.hidden;
  const double length = sqrt(product(&ours[0], &ours[0], h)), right = sqrt(product(&wanted[0], &wanted[0], h));
  if (!std::isfinite(length)) fail("%s: not finite", text);
  const bool nothing = right < 1e-6, loose = drawn.kind == kExtreme;  // without length no direction
  const double most = nothing ? 1e-6 : drawn.shape.normalize ? 1e-4 : loose ? INFINITY : kLength * right;
  if (!(fabs(length - right) <= most)) fail("%s: length %g instead of %g", text, length, right);
  if (nothing || loose) return;
  const double cosine = product(&ours[0], &wanted[0], h) / length / right;
  if (!(cosine >= kCosine)) fail("%s: cosine %.6f", text, cosine);
  if (cosine < seen->cosine) seen->cosine = cosine, seen->least = seen->now;
}

void check_reference(const Drawn &drawn, void *model, const std::vector<Text> &texts, const Floats &vectors,
                     Seen *seen) {
  const int h = drawn.shape.hidden;
  const int64_t exact = embatch_amx_exact_rows(model);
  int64_t surely = 0;
  for (size_t i = 0; i < texts.size(); i++) {
    const float *vector = &vectors[i * h];
    char text[60];
    snprintf(text, sizeof text, "text %zu of %zu tokens", i, texts[i].size());
    if (texts[i].empty()) {
      if (std::any_of(vector, vector + h, [](float x) { return x != 0; })) fail("%s: no zeros", text);
    } else if (drawn.kind != kOverflow || !std::count(texts[i].begin(), texts[i].end(), 0)) {
      check_vector(drawn, text, Numbers(vector, vector + h), encode(drawn, texts[i], &surely), seen);
    }
  }
  if (exact < surely || (exact && drawn.kind != kExtreme && drawn.kind != kOverflow))
    fail("%ld exact rows, %ld of the first layer are sure", long{exact}, long{surely});
  seen->exact_rows += exact, seen->exact_cases += exact > 0;
}

// Text i now was text order[i] before. Byte by byte, but for NaN: which of two NaN their sum is a compiler chooses.
void expect_same(const char *how, const Drawn &drawn, const Floats &now, const Floats &before,
                 const std::vector<int> &order) {
  const size_t hidden = drawn.shape.hidden;
  for (size_t i = 0; i < order.size() * hidden; i++) {
    const float x = now[i], y = before[order[i / hidden] * hidden + i % hidden];
    if (memcmp(&x, &y, 4) && !(std::isnan(x) && std::isnan(y)))
      fail("text %d, column %zu: %a %s, %a before", order[i / hidden], i % hidden, x, how, y);
  }
}

// In another order, with another rounding set, alone, on two threads at the same time.
void check_sameness(Random &random, const Drawn &drawn, void *model, const std::vector<Text> &texts,
                    const Floats &before) {
  const int64_t exact = embatch_amx_exact_rows(model);
  const int count = static_cast<int>(texts.size());
  std::vector<int> order;
  for (int i = 0; i < count; i++) order.insert(order.begin() + random.between(0, i), i);
  std::vector<Text> shuffled;
  for (int i : order) shuffled.push_back(texts[i]);
  const unsigned arithmetic = _mm_getcsr();
  _MM_SET_ROUNDING_MODE(_MM_ROUND_UP);
  expect_same("in another order", drawn, forward(drawn, model, shuffled), before, order);
  if (_MM_GET_ROUNDING_MODE() != _MM_ROUND_UP) fail("forward changed how the thread rounds");
  _mm_setcsr(arithmetic);
  if (embatch_amx_exact_rows(model) != 2 * exact) fail("another order has other exact rows");
  for (int i = 0; i < count; i++)
    if (count <= 12 || random.one_in(count / 12))
      expect_same("alone", drawn, forward(drawn, model, {texts[i]}), before, {i});
  if (random.one_in(2)) return;
  Floats here, there;
  std::thread other([&] { there = forward(drawn, model, shuffled); });
  here = forward(drawn, model, shuffled);
  other.join();
  expect_same("beside a thread", drawn, here, before, order);
  expect_same("on a thread", drawn, there, before, order);
}

void check_bad_models(Random &random, Drawn &drawn) {
  using Shape = embatch_amx_shape;
  std::vector<Shape> bad;
  const auto with = [&](int32_t Shape::*field, std::initializer_list<int> values) {
    for (int value : values) bad.push_back(drawn.shape), bad.back().*field = value;
  };
  with(&Shape::hidden, {-32, 0, 31, 48, 1056});
  with(&Shape::inner, {-32, 0, 31, 33});
  with(&Shape::heads, {-1, 0, drawn.shape.hidden / 16, drawn.shape.hidden, drawn.shape.hidden + 1});
  with(&Shape::pooling, {-1, 2});
  for (auto field : {&Shape::layers, &Shape::vocabulary, &Shape::positions}) with(field, {-1, 0});
  for (float epsilon : {-1e-5f, INFINITY, NAN}) bad.push_back(drawn.shape), bad.back().epsilon = epsilon;
  for (const Shape &shape : bad) load("a bad shape", shape, nullptr, EMBATCH_BAD_SHAPE);
  Floats &numbers = drawn.numbers[random.below(drawn.numbers.size())];
  float &number = numbers[1 + random.below(numbers.size() - 1)];
  const float good = number;
  number = random.one_of<float>({NAN, INFINITY, -INFINITY});
  load("a bad weight", drawn.shape, drawn.tensors.data(), EMBATCH_BAD_WEIGHTS);
  number = good;
}

void check_bad_texts(Random &random, const Drawn &drawn, void *model, std::vector<Text> texts) {
  const int place = random.below(texts.size() + 1);
  Text &bad = *texts.insert(texts.begin() + place, Text(drawn.longest() + 1));
  forward(drawn, model, texts, EMBATCH_BAD_LENGTH);
  bad.resize(random.between(1, drawn.longest()));
  bad[random.below(bad.size())] = random.one_of({-1, drawn.shape.vocabulary});
  forward(drawn, model, texts, EMBATCH_BAD_TOKEN);
}

void run_case(uint64_t number, Seen *seen) {
  Random random(number);
  Drawn drawn = draw_model(random);
  const std::vector<Text> texts = draw_texts(random, drawn);
  const embatch_amx_shape &s = drawn.shape;
  seen->now = number, seen->cases++, seen->texts += static_cast<int64_t>(texts.size());
  snprintf(now_running, sizeof now_running,
           "case %lu (kind %d, hidden %d, inner %d, layers %d, heads %d, positions %d, texts %zu): ", number,
           drawn.kind, s.hidden, s.inner, s.layers, s.heads, s.positions, texts.size());
  check_bad_models(random, drawn);
#if defined(EMBATCH_PORTABLE)
  embatch_amx_allocations(0);
  load("no memory", s, drawn.tensors.data(), EMBATCH_NO_MEMORY);
  embatch_amx_allocations(1);
#endif
  void *model = load("load", s, drawn.tensors.data(), EMBATCH_OK);
#if defined(EMBATCH_PORTABLE)
  forward(drawn, model, {Text()}, EMBATCH_NO_MEMORY);
  embatch_amx_allocations(-1);
#endif
  check_bad_texts(random, drawn, model, texts);
  const Floats vectors = forward(drawn, model, texts);
  seen->add(vectors);
  check_reference(drawn, model, texts, vectors, seen);
  check_sameness(random, drawn, model, texts, vectors);
  embatch_amx_free(model);
}

}  // namespace

extern "C" void __ubsan_on_report() { say_case(); }  // the undefined behaviour sanitizer calls it where it is there

int main(int count, char **arguments) {
  const double seconds = count > 1 ? atof(arguments[1]) : 10;
  uint64_t number = count > 2 ? strtoull(arguments[2], nullptr, 10) : 1;
  const int support = embatch_amx_supported();
  if (support != EMBATCH_SUPPORTED) {
    const char *const why[] = {"", "the processor lacks AMX or AVX-512 with bf16", "the system does not keep tiles",
                               "the system refuses this process the tiles"};
    fprintf(stderr, "cannot run: %s\n", why[support]);
    return 2;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(say_case);
#else
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT})
    std::signal(signal, [](int) { say_case(), _exit(1); });
#endif
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  Seen seen;
  do run_case(number++, &seen);
  while (Clock::now() < end);
  now_running[0] = 0;  // what leaks is no single case's
  printf("%ld cases, %ld texts, least cosine %.6f (case %lu), %ld exact rows in %ld cases, digest %016lx\n",
         long{seen.cases}, long{seen.texts}, seen.cosine, seen.least, long{seen.exact_rows}, long{seen.exact_cases},
         seen.digest);
}
