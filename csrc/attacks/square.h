// Square in linf: stripes to begin with, and a window of one new colour a query, drawn for each row
// by itself.
//
// The words are those of elements of the stream (common/stream.h), domain kSquare, with the row's
// image and sample = variant << 24 | query, 0 for the start: element 0 draws the window's row,
// element 1 its column, each as (word * positions) >> 32; the bits of the elements from 128 on are
// signs, that of column w and channel c (of channel c in a window) bit i % 32 of element 128 + i /
// 32 with i = c * width + w (i = c), 1 for plus. Version 1; it never changes within a major
// version.
#pragma once

#include "attacks/ball.h"
#include "attacks/narrow.h"
#include "common/stream.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

struct SquareArgs {
  int64_t rows, channels, height, width;
  StridedView best, x0;                        // [rows, elements]; best null: the start
  const int64_t *images, *variants, *queries;  // [rows]; queries null: the start
  RowParameter eps, share;                     // share: of the pixels that a window covers
  uint64_t seed;
  double low, high;   // values of x0's dtype
  StridedView place;  // [rows, elements]: where out lies
  void* out;          // of the dtype of x0

  RC_HOST_DEVICE int64_t elements() const {
    return channels * height * width;
  }
};

// A unit is a row.
RC_VARIANTS(square, const SquareArgs& args, int64_t begin, int64_t end);
void square_cuda(const SquareArgs& args, void* stream);

inline namespace RC_ISA {

// A row's draws.
struct SquareDraw {
  uint64_t seed;
  int64_t image, sample;
  int64_t top, left, size;  // of the window; size 0: the start

  template <class T>
  RC_HOST_DEVICE static SquareDraw of(const SquareArgs& args, int64_t at) {
    const int64_t query = args.queries ? args.queries[at] + 1 : 0;
    SquareDraw d{args.seed, args.images[at], args.variants[at] << 24 | query, 0, 0, 0};
    if (query == 0) return d;
    const double area = at_row<T>(args.share, at) * static_cast<double>(args.height * args.width);
    const int64_t shorter = args.height < args.width ? args.height : args.width;
    const auto side = static_cast<int64_t>(::rint(::sqrt(area)));
    d.size = side < 1 ? 1 : side < shorter ? side : shorter;
    uint32_t words[4];
    stream_words(d.seed, Domain::kSquare, d.image, d.sample, 0, words);
    d.top = static_cast<int64_t>(
        static_cast<uint64_t>(words[0]) * static_cast<uint64_t>(args.height - d.size + 1) >> 32);
    d.left = static_cast<int64_t>(
        static_cast<uint64_t>(words[1]) * static_cast<uint64_t>(args.width - d.size + 1) >> 32);
    return d;
  }
  RC_HOST_DEVICE bool covers(int64_t y, int64_t x) const {
    return size == 0 || (y >= top && y < top + size && x >= left && x < left + size);
  }
  // Whether sign `i` is plus.
  RC_HOST_DEVICE bool plus(int64_t i) const {
    uint32_t words[4];
    stream_words(seed, Domain::kSquare, image, sample, static_cast<uint32_t>(32 + i / 128), words);
    const int64_t word = i / 32 % 4;
    const uint32_t low = word & 1 ? words[1] : words[0], high = word & 1 ? words[3] : words[2];
    return (word & 2 ? high : low) >> (i % 32) & 1;
  }
};

// x0 plus or minus eps, in ball and box to the bit.
template <class T>
RC_HOST_DEVICE T square_value(const Ball<OneLane<T>>& ball, T radius, T x0, bool plus) {
  using L = OneLane<T>;
  return ball.clip(plus ? sum_below<L>(x0, radius) : -sum_below<L>(-x0, radius));
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
