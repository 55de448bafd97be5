#include <algorithm>
#include <cstring>
#include <vector>

#include "attacks/warp.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

constexpr int kBefore = 2;  // of the zeros around a plane, rows above and columns to the left
constexpr int kRun = 128;

// What pixels of a row that follow each other read, as arrays, of which compilers make vectors.
template <class T>
struct Run {
  int count;
  int32_t offset[kRun];  // of the upper left one in a padded plane
  T down[kRun], right[kRun];
};

// Calls body(first, run) for the pixels of row i of a pose.
template <class T, class Body>
void for_runs(const WarpArgs& args, int64_t image, int64_t pose_index, int i, const Body& body) {
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  const int stride = static_cast<int>(args.padded_columns());
  const Pose<T> pose(args, image, pose_index);
  Run<T> run;
  for (int first = 0; first < columns; first += kRun) {
    run.count = std::min(kRun, columns - first);
    for (int k = 0; k < run.count; ++k) {
      const Tap<T> down(pose.source_y(i, first + k), rows);
      const Tap<T> right(pose.source_x(i, first + k), columns);
      run.offset[k] = (down.first + kBefore) * stride + right.first + kBefore;
      run.down[k] = down.fraction, run.right[k] = right.fraction;
    }
    body(first, run);
  }
}

template <class E>
void lay_out_rows(const WarpArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int64_t rows = args.rows + 4, stride = args.padded_columns();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t plane = unit / rows, y = unit % rows - kBefore;
    const E* in = static_cast<const E*>(args.in) +
                  (args.first * args.channels + plane) * args.pixels() + y * args.columns;
    T* out = static_cast<T*>(args.corners) + unit * stride * 2;
    std::fill_n(out, stride * 2, T(0));
    for (int64_t below = 0; below < 2; ++below) {
      if (y + below < 0 || y + below >= args.rows) continue;
      for (int64_t x = 0; x < args.columns; ++x) {
        out[2 * (x + kBefore) + below] = convert<T>(in[below * args.columns + x]);
      }
    }
  }
}

template <class E>
void read_run(const Arithmetic<E>* plane, const Run<Arithmetic<E>>& run, E* out) {
  using T = Arithmetic<E>;
  T four[4 * kRun];  // pixel, below it, right of it, right of that below
  for (int k = 0; k < run.count; ++k) {
    memcpy(four + 4 * k, plane + int64_t{2} * run.offset[k], 4 * sizeof(T));
  }
  for (int k = 0; k < run.count; ++k) {
    const T upper = between(run.right[k], four[4 * k], four[4 * k + 2]);
    const T lower = between(run.right[k], four[4 * k + 1], four[4 * k + 3]);
    out[k] = convert<E>(between(run.down[k], upper, lower));
  }
}

template <class E>
void warp_rows(const WarpArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t i = unit % args.rows, at = args.first * args.poses + unit / args.rows;
    const int64_t image = at / args.poses;
    const T* planes = static_cast<const T*>(args.corners) +
                      (image - args.first) * args.channels * args.padded() * 2;
    E* out = static_cast<E*>(args.out) + at * args.channels * args.pixels() + i * args.columns;
    for_runs<T>(args, image, at % args.poses, static_cast<int>(i),
                [&](int first, const Run<T>& run) {
                  for (int64_t c = 0; c < args.channels; ++c) {
                    read_run(planes + c * args.padded() * 2, run, out + c * args.pixels() + first);
                  }
                });
  }
}

// Adds a part of a row to the sums of a padded plane.
template <class E>
void scatter_run(const E* grad, const Run<Arithmetic<E>>& run, int64_t stride,
                 Arithmetic<E>* sums) {
  using T = Arithmetic<E>;
  const auto add = [](T& sum, T weight, T g) { sum = OneLane<T>::fma(weight, g, sum); };
  for (int k = 0; k < run.count; ++k) {
    T *upper = sums + run.offset[k], *lower = upper + stride;
    const T g = convert<T>(grad[k]), y = run.down[k], x = run.right[k];
    add(upper[0], (1 - y) * (1 - x), g);
    add(upper[1], (1 - y) * x, g);
    add(lower[0], y * (1 - x), g);
    add(lower[1], y * x, g);
  }
}

template <class E>
void scatter_planes(const WarpArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int64_t stride = args.padded_columns();
  // Kept by the thread: fresh memory at every call would cost more than a small plane.
  static thread_local std::vector<T> sums;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / args.channels, channel = plane % args.channels;
    sums.assign(args.padded(), T(0));
    for (int64_t p = 0; p < args.poses; ++p) {
      const E* grad = static_cast<const E*>(args.in) +
                      ((image * args.poses + p) * args.channels + channel) * args.pixels();
      for (int i = 0; i < args.rows; ++i, grad += args.columns) {
        for_runs<T>(args, image, p, i, [&](int first, const Run<T>& run) {
          scatter_run(grad + first, run, stride, sums.data());
        });
      }
    }
    E* out = static_cast<E*>(args.out) + plane * args.pixels();
    for (int64_t y = 0; y < args.rows; ++y) {
      const T* row = sums.data() + (y + kBefore) * stride + kBefore;
      for (int64_t x = 0; x < args.columns; ++x) *out++ = convert<E>(row[x]);
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(warp_corners)(const WarpArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { lay_out_rows<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(warp)(const WarpArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { warp_rows<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(warp_transposed)(const WarpArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { scatter_planes<decltype(tag)>(args, begin, end); });
}

}  // namespace robustcore::attacks
