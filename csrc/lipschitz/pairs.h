// Pairs of channels: MaxMin, its adjoint, and maps of the plane of a pair, with the arithmetic both
// devices run. Every product that is added to something is an explicit fma, so all instruction sets
// and the GPU agree to the bit.
#pragma once

#include "common/dtype.h"
#include "common/math.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::lipschitz {

// Channels in two halves whose members pair up. Memory is [rows, 2, channels, pixels]: rows are
// images, or, channels last, the positions of all images, with pixels = 1.
struct PairShape {
  int64_t rows, channels, pixels;
  DType dtype;

  constexpr int64_t run() const {  // pairs of one row
    return channels * pixels;
  }
  constexpr int64_t bytes() const {  // of one row's bits
    return (run() + 7) / 8;
  }
};

// out = the larger of each pair, then the smaller; bit i % 8 of byte i / 8 of a row says that pair
// i keeps its order. NaNs keep theirs: each output is an input, nothing is lost.
struct MaxMinArgs {
  PairShape shape;
  const void* x;
  void* out;
  uint8_t* bits;  // [rows, bytes()]
};

// out = the pairs of x, exchanged where their bit is clear: the adjoint, and the inverse.
struct SwapArgs {
  PairShape shape;
  const void* x;
  const uint8_t* bits;
  void* out;
};

// Maps of the plane of a pair (x, y), with one row of numbers a channel.
enum class Map : int32_t { kHouseholder, kHouseholder2, kProjection };

struct MapArgs {
  Map map;
  PairShape shape;
  const void* x;
  const void* table;  // [entries, channels], double if x is, else float
  void* out;          // [rows, 2 or 1, channels, pixels]
};

struct MapBackwardArgs {
  Map map;
  PairShape shape;
  const void* x;
  const void* table;
  const void* grad;  // as MapArgs::out
  void* grad_x;      // as x
  void* grad_angle;  // [rows, angles, channels, pixels], the terms of each angle's gradient
};

constexpr int64_t kPairRun = 8192;  // pairs of a unit, a multiple of 8

// A unit is a part of a long row, or several short rows.
struct PairTiling {
  int64_t rows;   // of a unit
  int64_t parts;  // of a row

  explicit PairTiling(const PairShape& s)
      : rows(s.run() < kPairRun ? kPairRun / s.run() : 1), parts(ceil_div(s.run(), kPairRun)) {}
  int64_t units(const PairShape& s) const {
    return ceil_div(s.rows, rows) * parts;
  }

  // Calls body(row, first, last) with the pairs [first, last) of each row in the units.
  template <class Body>
  void for_each(const PairShape& s, int64_t begin, int64_t end, const Body& body) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row0 = unit / parts * rows, first = unit % parts * kPairRun;
      const int64_t last = first + kPairRun < s.run() ? first + kPairRun : s.run();
      const int64_t row1 = row0 + rows < s.rows ? row0 + rows : s.rows;
      for (int64_t row = row0; row < row1; ++row) body(row, first, last);
    }
  }
};

RC_VARIANTS(maxmin, const MaxMinArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(swap, const SwapArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(pair_map, const MapArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(pair_map_backward, const MapBackwardArgs& args, int64_t begin, int64_t end);
void maxmin_cuda(const MaxMinArgs& args, void* stream);
void swap_cuda(const SwapArgs& args, void* stream);
void pair_map_cuda(const MapArgs& args, void* stream);
void pair_map_backward_cuda(const MapBackwardArgs& args, void* stream);

inline namespace RC_ISA {

// p * q + r * s
template <class T>
RC_HOST_DEVICE T dot2(T p, T q, T r, T s) {
  return fused_multiply_add(p, q, r * s);
}

// Where the vector (x, y) stands in [0, pi): the x axis itself belongs to it on the right only.
template <class T>
RC_HOST_DEVICE bool upper(T x, T y) {
  return y > 0 || (y == 0 && x >= 0);
}

// Order 1: the half-plane s > 0 is reflected into the other one. Entries: cos, sin of theta / 2,
// cos, sin of theta.
struct Householder {
  static constexpr int kEntries = 4, kOutputs = 2, kAngles = 1;

  template <class T>
  static RC_HOST_DEVICE bool folds(const T* k, T x, T y) {
    return dot2(x, k[1], -y, k[0]) > 0;
  }
  template <class T>
  static RC_HOST_DEVICE void forward(const T* k, T x, T y, T* out) {
    const bool fold = folds(k, x, y);
    out[0] = fold ? dot2(x, k[2], y, k[3]) : x;
    out[1] = fold ? dot2(x, k[3], -y, k[2]) : y;
  }
  template <class T>
  static RC_HOST_DEVICE void backward(const T* k, T x, T y, const T* g, T* grad, T* angle) {
    const bool fold = folds(k, x, y);
    const T a = dot2(x, k[2], y, k[3]), b = dot2(x, k[3], -y, k[2]);
    grad[0] = fold ? dot2(g[0], k[2], g[1], k[3]) : g[0];
    grad[1] = fold ? dot2(g[0], k[3], -g[1], k[2]) : g[1];
    angle[0] = fold ? dot2(g[1], a, -g[0], b) : T(0);
  }
};

// Order 2: four sectors, each kept, reflected or rotated. Entries: cos, sin of theta0 / 2; cos, sin
// of the three sector ends, and whether the second is beyond pi; cos, sin of theta0 + theta1, of
// theta2, of theta0. The angles of grad_angle are the reflections' and the rotation's:
// theta0 + theta1, theta2, theta0.
struct Householder2 {
  static constexpr int kEntries = 15, kOutputs = 2, kAngles = 3;

  template <class T>
  static RC_HOST_DEVICE int sector(const T* k, T x, T y) {
    // Comparisons of angles as signs of cross products: no arc tangent.
    const T u = dot2(x, k[0], y, k[1]), v = dot2(y, k[0], -x, k[1]);
    const bool up = upper(u, v);
    const bool before1 = up & (dot2(u, k[3], -v, k[2]) > 0);
    const bool left2 = dot2(u, k[5], -v, k[4]) > 0;
    const bool before2 = k[6] > 0 ? up | left2 : up & left2;
    const bool before3 = up | (dot2(u, k[8], -v, k[7]) > 0);
    return before1 ? 0 : before2 ? 1 : before3 ? 2 : 3;
  }
  template <class T>
  static RC_HOST_DEVICE void forward(const T* k, T x, T y, T* out) {
    const int s = sector(k, x, y);
    // Sectors 1 and 3 are reflections, 2 is a rotation: the second row changes its sign.
    const T c = s == 0 ? T(1) : s == 1 ? k[9] : s == 2 ? k[11] : k[13];
    const T d = s == 0 ? T(0) : s == 1 ? k[10] : s == 2 ? k[12] : k[14];
    const T b = dot2(x, d, -y, c);
    out[0] = dot2(x, c, y, d);
    out[1] = s == 0 || s == 2 ? -b : b;
  }
  template <class T>
  static RC_HOST_DEVICE void backward(const T* k, T x, T y, const T* g, T* grad, T* angle) {
    const int s = sector(k, x, y);
    const bool turn = s == 0 || s == 2;
    const T c = s == 0 ? T(1) : s == 1 ? k[9] : s == 2 ? k[11] : k[13];
    const T d = s == 0 ? T(0) : s == 1 ? k[10] : s == 2 ? k[12] : k[14];
    const T a = dot2(x, c, y, d), b = dot2(x, d, -y, c);
    const T h = turn ? -g[1] : g[1];  // the gradient of b
    grad[0] = dot2(g[0], c, h, d);
    grad[1] = dot2(g[0], d, -h, c);
    const T t = dot2(h, a, -g[0], b);
    angle[0] = s == 1 ? t : T(0);
    angle[1] = s == 2 ? t : T(0);
    angle[2] = s == 3 ? t : T(0);
  }
};

// Signed distance of (x, y) to a set whose border has a corner at the origin. Entries: cos, sin of
// theta / 2.
struct Projection {
  static constexpr int kEntries = 2, kOutputs = 1, kAngles = 1;

  template <class T>
  static RC_HOST_DEVICE int sector(const T* k, T x, T y) {
    const bool up = upper(x, y);
    if (up & (dot2(x, k[0], y, k[1]) > 0)) return 0;
    return up | (dot2(-x, k[0], y, k[1]) > 0) ? 1 : 2;
  }
  template <class T>
  static RC_HOST_DEVICE void forward(const T* k, T x, T y, T* out) {
    const int s = sector(k, x, y);
    const T norm = OneLane<T>::sqrt(dot2(x, x, y, y));
    const T near = dot2(-x, k[1], s == 0 ? y : -y, k[0]);
    out[0] = s == 1 ? norm : near;
  }
  template <class T>
  static RC_HOST_DEVICE void backward(const T* k, T x, T y, const T* g, T* grad, T* angle) {
    const int s = sector(k, x, y);
    const T norm = OneLane<T>::sqrt(dot2(x, x, y, y));
    const T scale = norm > 0 ? g[0] / norm : T(0);
    const T sign = s == 0 ? T(1) : T(-1);
    grad[0] = s == 1 ? scale * x : -g[0] * k[1];
    grad[1] = s == 1 ? scale * y : g[0] * sign * k[0];
    const T slope = dot2(-x, k[0], -sign * y, k[1]) * T(0.5);
    angle[0] = s == 1 ? T(0) : g[0] * slope;
  }
};

// Calls body(M{}) with the map of `map`.
template <class Body>
void dispatch_map(Map map, const Body& body) {
  switch (map) {
    case Map::kHouseholder:
      return body(Householder{});
    case Map::kHouseholder2:
      return body(Householder2{});
    case Map::kProjection:
      return body(Projection{});
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::lipschitz
