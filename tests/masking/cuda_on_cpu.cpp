// Executes the masking kernels through the shim and compares them with the CPU kernels, bit for
// bit. Prints one line a case; the exit status is the number of cases that differ (at most 99).
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "masking/epilogue.h"
#include "masking/fill.h"

using namespace robustcore;
using namespace robustcore::masking;

namespace {

// Zeros and ones, or anything in [0, 1] with many zeros.
template <class T>
std::vector<T> mask_values(size_t n, bool binary) {
  Random random{7};
  std::vector<T> v(n);
  for (T& m : v) {
    const float r = random();
    m = convert<T>(r < 7.5f ? 0.0f : binary ? 1.0f : (r - 7.5f) * 2.0f);
  }
  return v;
}

struct Shape {
  int64_t images, channels, rows, columns;
  int64_t size() const {
    return images * channels * rows * columns;
  }
};

void set_strides(int64_t (&strides)[4], const Shape& s, bool last) {
  const int64_t contiguous[4] = {s.channels * s.rows * s.columns, s.rows * s.columns, s.columns, 1};
  const int64_t pixels[4] = {s.channels * s.rows * s.columns, 1, s.columns * s.channels,
                             s.channels};
  std::memcpy(strides, last ? pixels : contiguous, sizeof(strides));
}

template <class T>
void fill_case(const Shape& shape, int iters, bool last, bool binary, bool one_image, FillMode mode,
               bool multiply) {
  auto x = random_values<T>(shape.size(), 1);
  const auto mask = mask_values<Arithmetic<T>>(shape.images * shape.rows * shape.columns, binary);
  FillArgs args{};
  args.images = shape.images, args.channels = shape.channels;
  args.rows = shape.rows, args.columns = shape.columns;
  args.x.data = x.data(), args.x.dtype = kType<T>;
  set_strides(args.x.strides, shape, last);
  set_strides(args.out_strides, shape, last);
  if (one_image) args.x.strides[0] = 0;
  args.mask = {
      mask.data(), kType<Arithmetic<T>>, {shape.rows * shape.columns, 0, shape.columns, 1}};
  args.iters = iters, args.multiply = multiply, args.mode = mode, args.dtype = kType<T>;
  std::vector<T> out[2];
  for (int side = 0; side < 2; ++side) {
    out[side].resize(shape.size());
    std::memset(static_cast<void*>(out[side].data()), side ? 0xAB : 0xCD, shape.size() * sizeof(T));
    args.out = out[side].data();
    side ? fill_cuda(args, nullptr) : fill_baseline(args, 0, FillTiling(args).units(args));
  }
  report("fill dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
             std::to_string(shape.channels) + "x" + std::to_string(shape.rows) + "x" +
             std::to_string(shape.columns) + " iters " + std::to_string(iters) +
             (last ? " channels last" : "") + (binary ? " binary" : "") +
             (one_image ? " one image" : "") + " mode " + std::to_string(static_cast<int>(mode)),
         std::memcmp(out[0].data(), out[1].data(), shape.size() * sizeof(T)) == 0);
}

template <class T>
void epilogue_case(const Shape& shape, bool last, bool with_mask, bool affine, bool relu) {
  using A = Arithmetic<T>;
  auto x = random_values<T>(shape.size(), 2);
  const auto mask = mask_values<A>(shape.images * shape.rows * shape.columns, false);
  const auto scale = random_values<A>(shape.channels, 3),
             shift = random_values<A>(shape.channels, 4);
  EpilogueArgs args{};
  args.images = shape.images, args.channels = shape.channels;
  args.rows = shape.rows, args.columns = shape.columns;
  args.x.data = x.data(), args.x.dtype = kType<T>;
  set_strides(args.x.strides, shape, last);
  if (with_mask) {
    args.mask = {mask.data(), kType<A>, {shape.rows * shape.columns, 0, shape.columns, 1}};
  }
  if (affine) args.scale = scale.data(), args.shift = shift.data();
  args.relu = relu, args.channels_last = last, args.dtype = kType<T>;
  std::vector<T> out[2];
  for (int side = 0; side < 2; ++side) {
    out[side].resize(shape.size());
    std::memset(static_cast<void*>(out[side].data()), side ? 0xAB : 0xCD, shape.size() * sizeof(T));
    args.out = out[side].data();
    side ? epilogue_cuda(args, nullptr) : epilogue_baseline(args, 0, epilogue_units(args));
  }
  report("epilogue dtype " + std::to_string(static_cast<int>(kType<T>)) +
             (last ? " channels last" : "") + (with_mask ? " mask" : "") +
             (affine ? " affine" : "") + (relu ? " relu" : ""),
         std::memcmp(out[0].data(), out[1].data(), shape.size() * sizeof(T)) == 0);
}

// All cases in float32; in the other dtypes one of each kind.
template <class T>
void cases() {
  constexpr bool all = std::is_same_v<T, float>;
  for (const bool last : {false, true}) {
    for (const bool binary : {false, true}) {
      fill_case<T>({2, 9, 7, 11}, 1, last, binary, false, FillMode::kFill, true);
      fill_case<T>({2, 9, 7, 11}, 2, last, binary, true, FillMode::kFill, true);
      fill_case<T>({2, 40, 5, 5}, 1, last, binary, false, FillMode::kFill, true);  // whole packs
      if (!all) continue;
      fill_case<T>({1, 3, 40, 37}, 6, last, binary, true, FillMode::kFill, true);
      fill_case<T>({1, 3, 19, 37}, kMaxIters, last, binary, false, FillMode::kFill, false);
      fill_case<T>({2, 2, 6, 5}, 0, last, binary, false, FillMode::kFill, true);
      fill_case<T>({1, 1, 1, 1}, 3, last, binary, false, FillMode::kFill, true);
    }
    fill_case<T>({2, 3, 19, 37}, kMaxItersTransposed, last, true, false, FillMode::kTranspose,
                 true);
    fill_case<T>({2, 9, 7, 11}, 1, last, true, false, FillMode::kTranspose, false);
    for (const Shape& shape : {Shape{2, 9, 5, 3}, Shape{2, 40, 4, 6}}) {
      epilogue_case<T>(shape, last, true, false, false);
      epilogue_case<T>(shape, last, true, true, true);
      epilogue_case<T>(shape, last, false, true, true);
    }
  }
  fill_case<T>({2, 1, 19, 37}, kMaxIters, false, false, false, FillMode::kState, false);
}

}  // namespace

int main() {
  cases<float>();
  cases<double>();
  cases<Half>();
  cases<BFloat16>();
  return finish();
}
