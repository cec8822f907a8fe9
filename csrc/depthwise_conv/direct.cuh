// Shared by the 3x3 kernels, which need no shared memory for pixels: a thread owns four channels of two neighbouring
// output columns, walks down the image, and reads its neighbours' columns from the L1.
//
// A block has a slab of 4 * `vectors` channels; the threads that are left over after whole columns do nothing.
#pragma once
#include "depthwise_conv.cuh"

constexpr int THREADS = 256, TAPS = 9, OWN = 2, WIDE = OWN + 2;  // columns of output and input
constexpr int MOST_VECTORS = 64;                                 // of a slab
constexpr int AHEAD = sizeof(Value) == 2 ? 2 : 1;                // rows in flight before the one in use

// COLUMNS pixels of one row as they lie in memory.
template <int COLUMNS> struct Row {
  Four raw[COLUMNS];
};

// Reads COLUMNS pixels a row, one row after the other, from column `first` of row `row` on; zeros outside the image's
// columns. `image` is the thread's first channel of the image's first pixel.
template <int COLUMNS> struct Reader {
  const Value* at;
  bool exists[COLUMNS];

  __device__ __forceinline__ Reader(const Value* __restrict__ image, int row, int first, int width, int channels)
      : at(image + (row * width + first) * channels) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) exists[i] = first + i >= 0 && first + i < width;
  }

  // A row that does not exist is zero.
  __device__ __forceinline__ void read(Row<COLUMNS>& into, bool row_exists, int width, int channels) {
    const Value* from = at;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i, from += channels) into.raw[i] = load_four(from, row_exists && exists[i]);
    at += width * channels;
  }
};
