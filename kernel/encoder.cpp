// The block driver: up to 512 tokens of whole texts through the whole net, then the next ones.
//
// All layers are done for a block before another begins: its activations stay in the second-level cache, and the
// weights pass by once for 512 tokens. Within a layer a head's query, key and value are used at once, and the
// feed-forward part goes chunk by chunk, its sum growing in float32.
#include "model.h"
#include "profile.h"

namespace embatch {
namespace {

template <class T>
EMBATCH_INLINE Panels<const T> read(Panels<T> panels) {
  return {panels.data, panels.stride};
}

void run_layer(const Model &model, const Layer &layer, const Scratch &s, const int *starts, int texts, int *exact) {
  const int panels = model.panels(), head = model.head_panels(), rows = starts[texts];
  const bf16 *w = layer.weights;
  for (int h = 0; h < model.shape.heads; h++) {
    const float *bias = layer.qkv_bias + h * 3 * head * kPanel;
    w = product<Narrow>(read(s.x), rows, w, panels, 3 * head, bias, s.qkv, s.blocks);
    profile::done(profile::kQkv);
    const Panels<const bf16> q = read(s.qkv);
    *exact += attend(head, q, q.from(head), q.from(2 * head), s.o.from(h * head), starts, texts, *s.attention);
    profile::done(profile::kAttention);
  }
  w = product<Keep>(read(s.o), rows, w, panels, panels, layer.o_bias, s.c, s.blocks);
  profile::done(profile::kOutput);
  normalize(read(s.c), s.x, panels, rows, layer.middle);
  profile::done(profile::kNorm);
  const int chunk = model.chunk / kPanel;
  for (int first = 0; first < model.shape.inner; first += model.chunk) {
    w = product<GeluNarrow>(read(s.x), rows, w, panels, chunk, layer.inner_bias + first, s.inner, s.blocks);
    profile::done(profile::kInner);
    w = first ? product<Add>(read(s.inner), rows, w, chunk, panels, nullptr, s.c, s.blocks)
              : product<Keep>(read(s.inner), rows, w, chunk, panels, layer.outer_bias, s.c, s.blocks);
    profile::done(profile::kOuter);
  }
  normalize(read(s.c), s.x, panels, rows, layer.end);
  profile::done(profile::kNorm);
}

// Texts `first` to `end` - 1, together at most a block. Returns how many rows of attention were exact.
int run_block(const Model &model, const Scratch &s, const int32_t *ids, const int64_t *offsets, int first, int end,
              float *vectors) {
  const int panels = model.panels();
  int starts[kBlock + 1], texts = 0, exact = 0;
  int which[kBlock];
  starts[0] = 0;
  profile::begin();
  for (int text = first; text < end; text++) {
    const int tokens = static_cast<int>(offsets[text + 1] - offsets[text]);
    if (!tokens) {
      memset(vectors + static_cast<size_t>(text) * model.shape.hidden, 0, sizeof(float) * model.shape.hidden);
      continue;
    }
    embed(model.tables, ids + offsets[text], tokens, panels, s.c, s.x, starts[texts]);
    which[texts] = text;
    starts[texts + 1] = starts[texts] + tokens;
    texts++;
  }
  if (!texts) return 0;
  normalize(read(s.c), s.x, panels, starts[texts], model.first);
  profile::done(profile::kEnds);
  for (int i = 0; i < model.shape.layers; i++) run_layer(model, model.layers[i], s, starts, texts, &exact);
  for (int i = 0; i < texts; i++)
    pool(read(s.x), panels, starts[i], starts[i + 1], model.shape.pooling == EMBATCH_MEAN, model.shape.normalize,
         vectors + static_cast<size_t>(which[i]) * model.shape.hidden);
  profile::done(profile::kEnds);
  return exact;
}

int check(const Model &model, const int32_t *ids, const int64_t *offsets, int texts) {
  const int limit = model.shape.positions < kBlock ? model.shape.positions : kBlock;
  for (int i = 0; i < texts; i++) {
    const int64_t tokens = offsets[i + 1] - offsets[i];
    if (tokens < 0 || tokens > limit) return EMBATCH_BAD_LENGTH;
  }
  for (int64_t i = offsets[0]; i < offsets[texts]; i++)
    if (ids[i] < 0 || ids[i] >= model.shape.vocabulary) return EMBATCH_BAD_TOKEN;
  return EMBATCH_OK;
}

}  // namespace
}  // namespace embatch

using embatch::Model;

int embatch_amx_load(const embatch_amx_shape *shape, const float *const *tensors, void **model) {
  const embatch::Arithmetic arithmetic;
  Model *loaded = nullptr;
  const int status = embatch::load_model(*shape, tensors, &loaded);
  if (status == EMBATCH_OK) *model = loaded;
  return status;
}

int embatch_amx_forward(void *opaque, const int32_t *ids, const int64_t *offsets, int32_t texts, float *vectors) {
  Model &model = *static_cast<Model *>(opaque);
  if (texts <= 0) return EMBATCH_OK;
  const int status = embatch::check(model, ids, offsets, texts);
  if (status != EMBATCH_OK) return status;
  embatch::Scratch *scratch = embatch::take_scratch(model);
  if (!scratch) return EMBATCH_NO_MEMORY;
  {
    const embatch::Arithmetic arithmetic;
    const embatch::Tiles tiles;
    for (int first = 0, end = 0; first < texts; first = end) {
      while (end < texts && offsets[end + 1] - offsets[first] <= embatch::kBlock && end - first < embatch::kBlock)
        end++;
      const int exact = embatch::run_block(model, *scratch, ids, offsets, first, end, vectors);
      model.exact_rows.fetch_add(exact, std::memory_order_relaxed);
    }
  }
  embatch::return_scratch(model, scratch);
  return EMBATCH_OK;
}

int64_t embatch_amx_exact_rows(void *model) { return static_cast<Model *>(model)->exact_rows; }

#if defined(EMBATCH_PORTABLE)
void embatch_amx_allocations(int left) { embatch::allocations_left = left; }
#endif

void embatch_amx_free(void *model) { embatch::free_model(static_cast<Model *>(model)); }
