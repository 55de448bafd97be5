#include <vector>

#include "attacks/warp.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

constexpr int kRun = 128;

// Sources of pixels that follow each other, as arrays, of which compilers make vectors.
template <class T>
struct Run {
  int32_t offset[kRun];
  T down[kRun], right[kRun];
};

// A row of a pose. Between `begin` and `end` all that its pixels read is inside the image.
template <class T>
class Row {
 public:
  Row(const WarpArgs& args, int64_t image, int64_t pose, int i)
      : pose_(args, image, pose),
        rows_(static_cast<int>(args.rows)),
        columns_(static_cast<int>(args.columns)),
        i_(i) {
    const T y0 = pose_.source_y(i, 0), x0 = pose_.source_x(i, 0);
    T from = 0, to = static_cast<T>(columns_);
    narrow(y0, pose_.source_y(i, 1) - y0, rows_ - 1, from, to);
    narrow(x0, pose_.source_x(i, 1) - x0, columns_ - 1, from, to);
    begin_ = static_cast<int>(from), end_ = static_cast<int>(to);
    // Sources rise or fall along a row: what lies between two that are inside is inside.
    while (begin_ < end_ && !whole(begin_)) ++begin_;
    while (begin_ < end_ && !whole(end_ - 1)) --end_;
    if (begin_ >= end_) begin_ = end_ = columns_;
  }

  // Calls edge(j, down, right) for the pixels beside, and inner(first, count, run) for the others.
  template <class Edge, class Inner>
  void visit(const Edge& edge, const Inner& inner) const {
    edges(0, begin_, edge);
    Run<T> run;
    for (int first = begin_; first < end_; first += kRun) {
      const int count = end_ - first < kRun ? end_ - first : kRun;
      for (int k = 0; k < count; ++k) {
        const T y = pose_.source_y(i_, first + k), x = pose_.source_x(i_, first + k);
        const int at_y = static_cast<int>(y), at_x = static_cast<int>(x);
        run.offset[k] = at_y * columns_ + at_x;
        run.down[k] = y - static_cast<T>(at_y), run.right[k] = x - static_cast<T>(at_x);
      }
      inner(first, count, run);
    }
    edges(end_, columns_, edge);
  }

 private:
  // The columns where source + j * slope is in [0, last), about.
  static void narrow(T source, T slope, int last, T& from, T& to) {
    if (slope == T(0)) return;
    const T one = -source / slope, other = (static_cast<T>(last) - source) / slope;
    const T low = (one < other ? one : other) - 1, high = (one < other ? other : one) + 2;
    if (low > from) from = low < to ? low : to;
    if (high < to) to = high > from ? high : from;
  }
  bool whole(int j) const {
    const T y = pose_.source_y(i_, j), x = pose_.source_x(i_, j);
    return y >= 0 && y < static_cast<T>(rows_ - 1) && x >= 0 && x < static_cast<T>(columns_ - 1);
  }
  template <class Edge>
  void edges(int first, int last, const Edge& edge) const {
    for (int j = first; j < last; ++j) {
      edge(j, Tap<T>(pose_.source_y(i_, j), rows_), Tap<T>(pose_.source_x(i_, j), columns_));
    }
  }

  Pose<T> pose_;
  int rows_, columns_, i_, begin_, end_;
};

template <class E>
void read_run(const E* plane, int columns, const Run<Arithmetic<E>>& run, int count, E* out) {
  using T = Arithmetic<E>;
  for (int k = 0; k < count; ++k) {
    const E *upper = plane + run.offset[k], *lower = upper + columns;
    const T right = run.right[k];
    out[k] =
        convert<E>(between(run.down[k], between(right, convert<T>(upper[0]), convert<T>(upper[1])),
                           between(right, convert<T>(lower[0]), convert<T>(lower[1]))));
  }
}

template <class E>
void warp_rows(const WarpArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  const int64_t pixels = args.pixels();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int i = static_cast<int>(unit % rows);
    const int64_t at = unit / rows, image = at / args.poses;
    const E* planes = static_cast<const E*>(args.in) + image * args.channels * pixels;
    E* out = static_cast<E*>(args.out) + at * args.channels * pixels + int64_t{i} * columns;
    Row<T>(args, image, at % args.poses, i)
        .visit(
            [&](int j, const Tap<T>& down, const Tap<T>& right) {
              for (int64_t c = 0; c < args.channels; ++c) {
                const auto read = [&](int64_t e) { return convert<T>(planes[c * pixels + e]); };
                out[c * pixels + j] = convert<E>(value_at(read, down, right, rows, columns));
              }
            },
            [&](int first, int count, const Run<T>& run) {
              for (int64_t c = 0; c < args.channels; ++c) {
                read_run(planes + c * pixels, columns, run, count, out + c * pixels + first);
              }
            });
  }
}

// Adds one row's part to the sums of a plane.
template <class E>
void scatter_row(const Row<Arithmetic<E>>& row, const E* grad, int rows, int columns,
                 Arithmetic<E>* sums) {
  using T = Arithmetic<E>;
  const auto add = [](T& sum, T weight, T g) { sum = OneLane<T>::fma(weight, g, sum); };
  row.visit(
      [&](int j, const Tap<T>& down, const Tap<T>& right) {
        for (int y = down.first; y < down.first + 2; ++y) {
          for (int x = right.first; x < right.first + 2; ++x) {
            if (!is_inside(y, rows) || !is_inside(x, columns)) continue;
            add(sums[static_cast<int64_t>(y) * columns + x], down.weight(y) * right.weight(x),
                convert<T>(grad[j]));
          }
        }
      },
      [&](int first, int count, const Run<T>& run) {
        for (int k = 0; k < count; ++k) {
          T *upper = sums + run.offset[k], *lower = upper + columns;
          const T g = convert<T>(grad[first + k]), y = run.down[k], x = run.right[k];
          add(upper[0], (1 - y) * (1 - x), g);
          add(upper[1], (1 - y) * x, g);
          add(lower[0], y * (1 - x), g);
          add(lower[1], y * x, g);
        }
      });
}

template <class E>
void scatter_planes(const WarpArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  const int64_t pixels = args.pixels();
  // Kept by the thread: fresh memory at every call would cost more than a small plane.
  static thread_local std::vector<T> sums;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / args.channels, channel = plane % args.channels;
    sums.assign(pixels, T(0));
    for (int64_t p = 0; p < args.poses; ++p) {
      const E* grad = static_cast<const E*>(args.in) +
                      ((image * args.poses + p) * args.channels + channel) * pixels;
      for (int i = 0; i < rows; ++i, grad += columns) {
        scatter_row(Row<T>(args, image, p, i), grad, rows, columns, sums.data());
      }
    }
    E* out = static_cast<E*>(args.out) + plane * pixels;
    for (int64_t e = 0; e < pixels; ++e) out[e] = convert<E>(sums[e]);
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(warp)(const WarpArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { warp_rows<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(warp_transposed)(const WarpArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { scatter_planes<decltype(tag)>(args, begin, end); });
}

}  // namespace robustcore::attacks
