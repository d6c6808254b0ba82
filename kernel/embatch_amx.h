// The library as others call it: plain C, no Python. Texts as token ids in, vectors out.
//
// A model is loaded once and may then be used from any number of threads at the same time. The kernel starts
// no threads and keeps no locks, so a process that forks may go on using a model in the child. A vector
// depends on the bytes of the model and the token ids of its text alone: not on the texts beside it, their
// order or number, the thread, or the process.
#ifndef EMBATCH_AMX_H
#define EMBATCH_AMX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMBATCH_API __attribute__((visibility("default")))

// Changes whenever anything here does: who loads the library compares it first.
#define EMBATCH_AMX_INTERFACE 1

enum embatch_amx_support {
  EMBATCH_SUPPORTED = 0,
  EMBATCH_NO_PROCESSOR = 1,   // the processor lacks AMX with bf16, or AVX-512 with bf16
  EMBATCH_NO_SYSTEM = 2,      // the operating system or hypervisor does not keep the tile registers
  EMBATCH_NO_PERMISSION = 3,  // the kernel refuses this process the use of tiles
};

enum embatch_amx_status {
  EMBATCH_OK = 0,
  EMBATCH_BAD_SHAPE = 1,    // the model is of a shape the kernel does not compute
  EMBATCH_NO_MEMORY = 2,    // nothing was changed
  EMBATCH_BAD_WEIGHTS = 3,  // a weight is not finite, or not in bfloat16
  EMBATCH_BAD_TOKEN = 4,    // a token id below 0, or not below the vocabulary
  EMBATCH_BAD_LENGTH = 5,   // a text of more tokens than the model or a block takes
};

enum embatch_amx_pooling { EMBATCH_MEAN = 0, EMBATCH_CLS = 1 };

// A BERT: absolute positions, layer norm after each half of a layer, GELU by the error function.
struct embatch_amx_shape {
  int32_t hidden;      // a multiple of 32, at most 1024
  int32_t inner;       // of the feed-forward part: a multiple of 32
  int32_t layers;
  int32_t heads;       // of 32 or 64 columns each
  int32_t vocabulary;  // rows of the word table
  int32_t positions;   // rows of the position table: the longest text
  int32_t pooling;     // embatch_amx_pooling
  int32_t normalize;   // whether vectors get length 1
  float epsilon;       // of the layer norms
};

// Tokens of a block; texts are laid end to end in it.
#define EMBATCH_BLOCK 512
// Tensors before the first layer, and of each layer.
#define EMBATCH_HEAD_TENSORS 4
#define EMBATCH_LAYER_TENSORS 16

EMBATCH_API int embatch_amx_interface(void);

// Says whether this process may use the kernel, and asks the operating system for it. Costs microseconds,
// may be repeated. Compiled for any x86-64 processor; everything else needs its yes.
EMBATCH_API int embatch_amx_supported(void);

// Packs a model. `tensors`, float32, matrices as [outputs][inputs]: word table, position table (with the
// vector of token type 0 added), weight and bias of the first layer norm; then for each layer weight and bias
// of query, key, value, attention output, its layer norm, the inner and the outer product of the feed-forward
// part, its layer norm. The two tables must stay where they are until the model is freed; the rest is copied.
// Sets *model on EMBATCH_OK and leaves it alone otherwise.
EMBATCH_API int embatch_amx_load(const struct embatch_amx_shape *shape, const float *const *tensors, void **model);

// Computes the vectors of `texts` texts, text i being ids[offsets[i]] to ids[offsets[i + 1]], into
// vectors[texts][hidden]. Texts share a block in the order they come while their tokens fit into it. A text
// without tokens gets zeros. On any other status than EMBATCH_OK nothing in `vectors` counts.
EMBATCH_API int embatch_amx_forward(void *model, const int32_t *ids, const int64_t *offsets, int32_t texts,
                                    float *vectors);

// How often the softmax of a row needed its exact form since the model was loaded: costs time, not accuracy.
EMBATCH_API int64_t embatch_amx_exact_rows(void *model);

EMBATCH_API void embatch_amx_free(void *model);

#if defined(EMBATCH_PORTABLE)
// How many allocations succeed before one fails; below zero, all. Of builds for tests.
EMBATCH_API void embatch_amx_allocations(int left);
#endif

#ifdef __cplusplus
}
#endif
#endif
