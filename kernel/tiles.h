// The eight tile registers of AMX, 16 rows of 64 bytes each, and what is done with them.
//
// A register is named by a literal number: it is part of the instruction. TILE_PRODUCT(c, a, b) adds to c, 16 x
// 16 floats, the product of a, 16 rows of 32 bfloat16, and b, which holds 32 rows of 16 columns as pairs: row
// p of b is (2p, 0) (2p + 1, 0) (2p, 1) (2p + 1, 1) ..., the layout Intel calls VNNI.
//
// The portable build computes what Intel's manual writes (TDPBF16PS): in each product the even and the odd
// numbers of the sum are added up apart, then together, then to c, each step rounded to the nearest float32.
#pragma once

#include "simd.h"

namespace embatch {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;
constexpr int kTileNumbers = 512;  // bfloat16 of a tile

}  // namespace embatch

#if !defined(EMBATCH_PORTABLE)

#define TILE_LOAD(t, from, stride) _tile_loadd(t, from, stride)
// For what is read once: a plain load would push the other operand out of the first-level cache.
#define TILE_STREAM(t, from, stride) _tile_stream_loadd(t, from, stride)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_PRODUCT(c, a, b) _tile_dpbf16ps(c, a, b)

namespace embatch {

// Makes the registers this thread's until the end of the scope.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int t = 0; t < 8; t++) shape.row_bytes[t] = 64, shape.rows[t] = kTileRows;
    phase_ends();
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles &) = delete;
  Tiles &operator=(const Tiles &) = delete;
};

}  // namespace embatch

#else

#define TILE_LOAD(t, from, stride) embatch::tile_load(t, from, stride)
#define TILE_STREAM(t, from, stride) embatch::tile_load(t, from, stride)
#define TILE_STORE(t, to, stride) embatch::tile_store(t, to, stride)
#define TILE_ZERO(t) memset(embatch::tile_registers[t], 0, embatch::kTileBytes)
#define TILE_PRODUCT(c, a, b) embatch::tile_product(c, a, b)

namespace embatch {

class Tiles {
 public:
  Tiles() {}
  ~Tiles() {}
};

alignas(64) inline thread_local uint8_t tile_registers[8][kTileBytes];

inline void tile_load(int t, const void *from, long stride) {
  for (int row = 0; row < kTileRows; row++)
    memcpy(tile_registers[t] + row * 64, static_cast<const char *>(from) + row * stride, 64);
}

inline void tile_store(int t, void *to, long stride) {
  for (int row = 0; row < kTileRows; row++)
    memcpy(static_cast<char *>(to) + row * stride, tile_registers[t] + row * 64, 64);
}

inline void tile_product(int c, int a, int b) {
  alignas(64) float even[16][16], odd[16][16];  // of b: [pair][column]
  for (int p = 0; p < 16; p++)
    for (int n = 0; n < 16; n++) {
      uint32_t pair;
      memcpy(&pair, tile_registers[b] + p * 64 + n * 4, 4);
      even[p][n] = widen(static_cast<bf16>(pair));
      odd[p][n] = widen(static_cast<bf16>(pair >> 16));
    }
  for (int m = 0; m < 16; m++) {
    alignas(64) float evens[16] = {}, odds[16] = {}, sums[16];
    bf16 row[32];
    memcpy(row, tile_registers[a] + m * 64, 64);
    for (int p = 0; p < 16; p++) {
      const float x = widen(row[2 * p]), y = widen(row[2 * p + 1]);
      for (int n = 0; n < 16; n++) evens[n] = __builtin_fmaf(x, even[p][n], evens[n]);
      for (int n = 0; n < 16; n++) odds[n] = __builtin_fmaf(y, odd[p][n], odds[n]);
    }
    memcpy(sums, tile_registers[c] + m * 64, 64);
    for (int n = 0; n < 16; n++) sums[n] = sums[n] + (evens[n] + odds[n]);
    memcpy(tile_registers[c] + m * 64, sums, 64);
  }
}

}  // namespace embatch

#endif
