// Loading: a model's tensors into the order the block driver reads them, and memory for those who run it.
#include "model.h"

#include <math.h>
#include <new>

namespace embatch {
namespace {

bool known(const embatch_amx_shape &s) {
  if (s.hidden < kPanel || s.hidden > kMaxHidden || s.hidden % kPanel || s.inner < kPanel || s.inner % kPanel)
    return false;
  if (s.layers < 1 || s.heads < 1 || s.vocabulary < 1 || s.positions < 1 || s.hidden % s.heads) return false;
  if (s.hidden / s.heads != 32 && s.hidden / s.heads != 64) return false;
  return (s.pooling == EMBATCH_MEAN || s.pooling == EMBATCH_CLS) && s.epsilon >= 0 && isfinite(s.epsilon);
}

// Copies `count` floats times `factor`.
const float *copy(Arena &arena, const float *from, int count, float factor, bool *finite) {
  float *to = arena.take<float>(static_cast<size_t>(count));
  for (int i = 0; to && i < count; i++) {
    to[i] = factor * from[i];
    *finite &= static_cast<bool>(isfinite(to[i]));
  }
  return to;
}

Norm norm(Arena &arena, const embatch_amx_shape &s, const float *const *pair, bool *finite) {
  const float *weight = copy(arena, pair[0], s.hidden, 1, finite);
  return {weight, copy(arena, pair[1], s.hidden, 1, finite), s.epsilon};
}

// Numbers of a layer's matrices.
size_t weights_of(const embatch_amx_shape &s) {
  return static_cast<size_t>(s.hidden) * (4 * static_cast<size_t>(s.hidden) + 2 * static_cast<size_t>(s.inner));
}

// Lays out one layer, its matrices at `weights`; where that is null it only counts the rest.
Layer lay_out(Arena &arena, const embatch_amx_shape &s, int chunk, const float *const *t, bf16 *weights, bool *finite) {
  const int h = s.hidden, d = h / s.heads;
  const float query = 1.44269504f / sqrtf(static_cast<float>(d));  // log2(e) / sqrt(d)
  float *bias = arena.take<float>(static_cast<size_t>(3 * h));
  if (weights) {
    bf16 *w = weights;
    for (int head = 0; head < s.heads; head++)
      for (int i = 0; i < 3; i++) {
        const float factor = i ? 1 : query;
        w = pack(w, t[2 * i], h, head * d, d, 0, h, factor, finite);
        for (int column = 0; column < d; column++) {
          float &to = bias[(head * 3 + i) * d + column];
          to = factor * t[2 * i + 1][head * d + column];
          *finite &= static_cast<bool>(isfinite(to));
        }
      }
    w = pack(w, t[6], h, 0, h, 0, h, 1, finite);
    for (int first = 0; first < s.inner; first += chunk) {
      w = pack(w, t[10], h, first, chunk, 0, h, 1, finite);
      w = pack(w, t[12], s.inner, 0, h, first, chunk, 1, finite);
    }
  }
  Layer layer = {};
  layer.weights = weights, layer.qkv_bias = bias;
  layer.o_bias = copy(arena, t[7], h, 1, finite);
  layer.middle = norm(arena, s, t + 8, finite);
  layer.inner_bias = copy(arena, t[11], s.inner, 1, finite);
  layer.outer_bias = copy(arena, t[13], h, 1, finite);
  layer.end = norm(arena, s, t + 14, finite);
  return layer;
}

Model *lay_out(Arena &arena, const embatch_amx_shape &s, const float *const *tensors, bool *finite) {
  Model *model = arena.take<Model>(1);
  Layer *layers = arena.take<Layer>(static_cast<size_t>(s.layers));
  const Norm first = norm(arena, s, tensors + 2, finite);
  if (model) {
    new (model) Model();
    model->shape = s, model->chunk = chunk_of(s.inner);
    model->tables = {tensors[0], tensors[1]};
    model->first = first, model->layers = layers;
  }
  // All layers' matrices are one piece, so that what is fetched ahead of one layer's last is the next one's first.
  const size_t each = weights_of(s), beyond = static_cast<size_t>(s.hidden) * kPanel;
  bf16 *const weights = arena.take<bf16>(each * static_cast<size_t>(s.layers) + beyond);
  for (int i = 0; i < s.layers; i++) {
    const float *const *t = tensors + EMBATCH_HEAD_TENSORS + i * EMBATCH_LAYER_TENSORS;
    const Layer layer =
        lay_out(arena, s, chunk_of(s.inner), t, weights ? weights + each * static_cast<size_t>(i) : nullptr, finite);
    if (layers) layers[i] = layer;
  }
  return model;
}

bool finite_table(const float *table, int rows, int hidden) {
  bool finite = true;
  for (size_t i = 0; i < static_cast<size_t>(rows) * static_cast<size_t>(hidden); i++)
    finite &= static_cast<bool>(isfinite(table[i]));
  return finite;
}

template <class T>
Panels<T> panels(Arena &arena, int columns) {
  const size_t stride = static_cast<size_t>(padded_rows(kBlock)) * kPanel;
  return {arena.take<T>(static_cast<size_t>(columns / kPanel) * stride), stride};
}

Scratch *lay_out(Arena &arena, const Model &model) {
  const int hidden = model.shape.hidden, wider = hidden > model.chunk ? hidden : model.chunk;
  Scratch *scratch = arena.take<Scratch>(1);
  Scratch s = {};
  s.attention = arena.take<AttentionScratch>(1);
  s.blocks = arena.take<float>(kScratch);
  s.qkv = panels<bf16>(arena, 3 * hidden / model.shape.heads);
  s.x = panels<bf16>(arena, hidden);
  s.o = s.inner = panels<bf16>(arena, wider);
  s.c = panels<float>(arena, hidden);
  if (scratch) {
    *scratch = s;
    scratch->attention->prepare();
  }
  return scratch;
}

}  // namespace

int load_model(const embatch_amx_shape &shape, const float *const *tensors, Model **loaded) {
  if (!known(shape)) return EMBATCH_BAD_SHAPE;
  bool finite = finite_table(tensors[0], shape.vocabulary, shape.hidden) &&
                finite_table(tensors[1], shape.positions, shape.hidden);
  if (!finite) return EMBATCH_BAD_WEIGHTS;
  Arena counted;
  lay_out(counted, shape, tensors, &finite);
  void *memory = allocate(counted.used());
  if (!memory) return EMBATCH_NO_MEMORY;
  Arena arena(memory);
  Model *model = lay_out(arena, shape, tensors, &finite);
  model->memory = memory;
  if (!finite) {
    free_model(model);
    return EMBATCH_BAD_WEIGHTS;
  }
  *loaded = model;
  return EMBATCH_OK;
}

void free_model(Model *model) {
  for (auto &place : model->idle) free(place.exchange(nullptr));
  free(model->memory);
}

Scratch *take_scratch(Model &model) {
  for (auto &place : model.idle)
    if (Scratch *scratch = place.exchange(nullptr)) return scratch;
  Arena counted;
  lay_out(counted, model);
  void *memory = allocate(counted.used());
  if (!memory) return nullptr;
  Arena arena(memory);
  return lay_out(arena, model);
}

void return_scratch(Model &model, Scratch *scratch) {
  for (auto &place : model.idle) {
    Scratch *none = nullptr;
    if (place.compare_exchange_strong(none, scratch)) return;
  }
  free(scratch);  // the first thing in its memory
}

}  // namespace embatch
