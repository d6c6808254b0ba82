// A model as the kernel keeps it: one allocation with everything packed, and scratch for those who use it.
#pragma once

#include <atomic>

#include "attention.h"
#include "embatch_amx.h"
#include "matmul.h"
#include "norm.h"

namespace embatch {

// What a thread needs for a block. Kept for the next caller rather than given back.
struct Scratch {
  Panels<bf16> x;       // hidden columns: what goes from layer to layer
  Panels<bf16> o;       // hidden columns: what attention gives
  Panels<bf16> inner;   // a chunk of the feed-forward part, in the place of `o`, which is used up by then
  Panels<bf16> qkv;     // query, key and value of one head
  Panels<float> c;      // hidden columns: sums that a norm waits for
  float *blocks;        // kScratch
  AttentionScratch *attention;
};

struct Layer {
  const bf16 *weights;
  const float *qkv_bias, *o_bias, *inner_bias, *outer_bias;
  Norm middle, end;
};

struct Model {
  embatch_amx_shape shape;
  int chunk;  // columns of the feed-forward part that are computed at a time
  Tables tables;
  Norm first;
  Layer *layers;
  void *memory;
  std::atomic<int64_t> exact_rows;
  // Scratch nobody uses now. No lock: taking one is an exchange, and a process that forks copies them all.
  static constexpr int kKept = 64;
  std::atomic<Scratch *> idle[kKept];

  int panels() const { return shape.hidden / kPanel; }
  int head_panels() const { return shape.hidden / shape.heads / kPanel; }
};

#if !defined(EMBATCH_CHUNK)  // benchmarks compile others
#define EMBATCH_CHUNK 384
#endif
// 384 columns (768 are 10 % slower, 192 no faster), or the most up to 512 that divide the whole.
constexpr int chunk_of(int inner) {
  if (inner % EMBATCH_CHUNK == 0) return EMBATCH_CHUNK;
  int chunk = 512;
  while (inner % chunk) chunk -= kPanel;
  return chunk;
}

int load_model(const embatch_amx_shape &shape, const float *const *tensors, Model **model);
void free_model(Model *model);

// Takes scratch for one block at a time; null without memory.
Scratch *take_scratch(Model &model);
void return_scratch(Model &model, Scratch *scratch);

}  // namespace embatch
