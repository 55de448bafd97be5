// Square: in linf stripes to begin with, and a window of one new colour a query; in l2 and l1 tiles
// of two peaks each to begin with, and a query that moves what the ball has left, and what is in a
// second window, to the peaks of a first one. Drawn for each row by itself.
//
// The words are those of elements of the stream (common/stream.h), domain kSquare, with the row's
// image and sample = variant << 24 | query, 0 for the start: elements 0 and 1 draw the window's row
// and column, elements 2 and 3 those of the second one, each as (word * positions) >> 32; the bits
// of the elements from 128 on are signs, bit i % 32 of element 128 + i / 32, 1 for plus: in linf of
// column w and channel c i = c * width + w (of channel c in a window i = c); in l2 and l1 of tile t
// and channel c i = t * channels + c (in a window i = c), and the bit after the last of them says
// whether the peaks of a window lie side by side. Version 1; it never changes within a major
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
  Norm norm;
  StridedView best, x0;                        // [rows, elements]; best null: the start
  const int64_t *images, *variants, *queries;  // [rows]; queries null: the start
  RowParameter eps, share;                     // share: of the pixels that a window covers
  // In l2 and l1: sum_{j <= i} 1 / j^2 at i, up to a window's largest side.
  const double* rings;
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
  int64_t second_top, second_left;

  template <class T>
  RC_HOST_DEVICE static SquareDraw of(const SquareArgs& args, int64_t at) {
    const int64_t query = args.queries ? args.queries[at] + 1 : 0;
    SquareDraw d{args.seed, args.images[at], args.variants[at] << 24 | query, 0, 0, 0, 0, 0};
    if (query == 0) return d;
    const double area = at_row<T>(args.share, at) * static_cast<double>(args.height * args.width);
    const int64_t shorter = args.height < args.width ? args.height : args.width;
    auto side = static_cast<int64_t>(::rint(::sqrt(area)));
    // Two peaks take three rows, and have a middle where the other side is odd.
    if (args.norm != Norm::kLinf) side = side < 3 ? 3 : side | 1;
    d.size = side < 1 ? 1 : side < shorter ? side : shorter;
    uint32_t words[4];
    stream_words(d.seed, Domain::kSquare, d.image, d.sample, 0, words);
    const auto place = [&](uint32_t word, int64_t length) {
      const auto positions = static_cast<uint64_t>(length - d.size + 1);
      return static_cast<int64_t>(static_cast<uint64_t>(word) * positions >> 32);
    };
    d.top = place(words[0], args.height), d.left = place(words[1], args.width);
    d.second_top = place(words[2], args.height), d.second_left = place(words[3], args.width);
    return d;
  }
  RC_HOST_DEVICE bool second_covers(int64_t y, int64_t x) const {
    return y >= second_top && y < second_top + size && x >= second_left && x < second_left + size;
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
