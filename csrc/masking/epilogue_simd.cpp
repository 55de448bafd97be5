#include <vector>

#include "masking/epilogue.h"

namespace robustcore::masking {
inline namespace RC_ISA {
namespace {

// A value a channel, in memory even where it is not given: loops over channels then ask nothing.
template <class T>
std::vector<T> channel_values(const void* values, int64_t channels, T otherwise) {
  const T* from = static_cast<const T*>(values);
  return from ? std::vector<T>(from, from + channels) : std::vector<T>(channels, otherwise);
}

// A row of a plane, or the channels of a pixel: mask, scale and shift of each element.
template <class E, class Mask, class Scale, class Shift>
RC_HOST_DEVICE void epilogue_run(const EpilogueArgs& args, const E* x, E* out, int64_t count,
                                 const Mask& mask, const Scale& scale, const Shift& shift) {
  const bool affine = args.scale || args.shift, relu = args.relu;
  for (int64_t i = 0; i < count; ++i) {
    const auto v = convert<Arithmetic<E>>(x[i]);
    out[i] = convert<E>(epilogue(v, scale(i), shift(i), affine, relu, mask(i)));
  }
}

template <class E>
void epilogue_units_of(const EpilogueArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int64_t rows = args.rows, columns = args.columns, channels = args.channels;
  const int64_t per_image = args.channels_last ? rows : channels;
  const auto scales = channel_values(args.scale, channels, T(1));
  const auto shifts = channel_values(args.shift, channels, T(0));
  std::vector<T> masks(columns, T(1));  // of a row
  const T *const scale = scales.data(), *const shift = shifts.data(), *const mask = masks.data();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / per_image;
    const auto load_mask = [&](int64_t row) {
      if (args.mask.data) load_row(args.mask, image, 0, row, 0, columns, masks.data());
    };
    const E* x = static_cast<const E*>(args.x.data) + image * args.x.strides[0];
    E* out = static_cast<E*>(args.out) + image * channels * rows * columns;
    if (args.channels_last) {
      const int64_t row = unit % rows;
      load_mask(row);
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t at = (row * columns + c) * channels;
        const T m = mask[c];
        epilogue_run(
            args, x + at, out + at, channels, [=](int64_t) { return m; },
            [=](int64_t i) { return scale[i]; }, [=](int64_t i) { return shift[i]; });
      }
    } else {
      const int64_t channel = unit % channels;
      const T a = scale[channel], b = shift[channel];
      for (int64_t row = 0; row < rows; ++row) {
        load_mask(row);
        const int64_t at = (channel * rows + row) * columns;
        epilogue_run(
            args, x + at, out + at, columns, [=](int64_t i) { return mask[i]; },
            [=](int64_t) { return a; }, [=](int64_t) { return b; });
      }
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(epilogue)(const EpilogueArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { epilogue_units_of<decltype(tag)>(args, begin, end); });
}

}  // namespace robustcore::masking
