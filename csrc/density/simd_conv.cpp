// A 3 x 3 convolution and the gradient of its kernel by Winograd's minimal filtering: images staged
// with their channels last, transformed patches, one small matrix product a patch element.
#include "common/winograd_tiles.h"
#include "density/simd.h"

namespace robustcore::density {
inline namespace RC_ISA {

#if defined(__AVX2__)
namespace {

using Float = Lanes::Float;
constexpr int L = Lanes::kFloats;
constexpr int kBlock = kTileBlock, kRows = kTileRows;

// Where pixel (y, x) of an image with its channels last lies: y * row + x * pixel.
struct Rows {
  int64_t width, row, pixel;
};

// An image of [channels, pixels] or [pixels, channels] to rows of padded channels; the padding is
// zero already, or becomes so.
void to_rows(const float* image, int64_t channels, int64_t pixels, bool is_last, int64_t padded,
             const Rows& to, float* out) {
  if (is_last) {
    for (int64_t p = 0; p < pixels; ++p, image += channels) {
      memcpy(out + p / to.width * to.row + p % to.width * to.pixel, image,
             channels * sizeof(float));
    }
    return;
  }
  for (int64_t p0 = 0; p0 < pixels; p0 += L) {
    const int count = static_cast<int>(pixels - p0 < L ? pixels - p0 : L);
    float* at[L];
    for (int i = 0; i < count; ++i) {
      at[i] = out + (p0 + i) / to.width * to.row + (p0 + i) % to.width * to.pixel;
    }
    for (int64_t c = 0; c < padded; c += L) {
      Float v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        v[i] = c + i < channels ? load_first(image + (c + i) * pixels + p0, count)
                                : Lanes::splat(0.0f);
      }
      Lanes::transpose(v);
      for (int i = 0; i < count; ++i) Lanes::store(at[i] + c, v[i]);
    }
  }
}

// Rows of padded channels, pixel after pixel, to an image of [channels, pixels].
void from_rows(const float* rows, int64_t channels, int64_t pixels, int64_t padded, float* image) {
  for (int64_t p = 0; p < pixels; p += L) {
    const int64_t count = pixels - p;
    for (int64_t c = 0; c < channels; c += L) {
      Float v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        v[i] = i < count ? Lanes::load(rows + (p + i) * padded + c) : Lanes::splat(0.0f);
      }
      Lanes::transpose(v);
      for (int i = 0; i < L && c + i < channels; ++i) {
        store_first(image + (c + i) * pixels + p, v[i], count);
      }
    }
  }
}

// Some images and the tiles of their results.
template <int M>
class Group {
 public:
  static constexpr int kPatch = (M + 2) * (M + 2);

  Group(const ConvShape& shape, const ConvPlan& plan, float* staged)
      : shape_(shape), plan_(plan), staged_(staged) {
    memset(staged, 0, plan.staged() * sizeof(float));  // the border stays zero from here on
  }

  void start(int64_t group, const float* x) {
    first_ = group * plan_.group;
    images_ = shape_.images - first_ < plan_.group ? shape_.images - first_ : plan_.group;
    tiles_ = images_ * plan_.tiles;
    const int64_t pixels = shape_.height * shape_.width, image = pixels * shape_.in;
    const Rows rows{shape_.width, plan_.staged_width * plan_.in, plan_.in};
    for (int64_t i = 0; i < images_; ++i) {
      float* to = staged_ + i * plan_.staged_height * rows.row + shape_.pad_y * rows.row +
                  shape_.pad_x * plan_.in;
      to_rows(x + (first_ + i) * image, shape_.in, pixels, shape_.x_is_last, plan_.in, rows, to);
    }
  }
  int64_t first_image() const {
    return first_;
  }
  int64_t images() const {
    return images_;
  }
  int64_t tiles() const {
    return tiles_;
  }
  int64_t run() const {
    return run_;
  }

  struct Tile {
    int64_t staged, dense;  // pixels before its first input and result
    int height, width;      // of what lies in the image
  };
  const Tile& tile(int64_t t) const {
    return tile_[t];
  }

  void set_run(int64_t first) {
    run_ = tiles_ - first < plan_.run ? tiles_ - first : plan_.run;
    const int64_t height = shape_.out_height(), width = shape_.out_width();
    for (int64_t t = 0; t < run_; ++t) {
      const int64_t image = (first + t) / plan_.tiles, rest = (first + t) % plan_.tiles;
      const int64_t y = rest / plan_.tiles_x * M, x = rest % plan_.tiles_x * M;
      tile_[t] = {(image * plan_.staged_height + y) * plan_.staged_width + x,
                  (image * height + y) * width + x,
                  static_cast<int>(height - y < M ? height - y : M),
                  static_cast<int>(width - x < M ? width - x : M)};
    }
  }

  // patches[f, t, c] of the run's tiles. Rows up to a multiple of kRows are computed with and
  // dropped; they must not be slow denormals.
  void transform(float* patches) const {
    const int64_t down = plan_.staged_width * plan_.in, next = plan_.run * plan_.in_row;
    for (int64_t t = 0; t < run_; ++t) {
      const float* p = staged_ + tile_[t].staged * plan_.in;
      for (int64_t c = 0; c < plan_.in; c += L, p += L) {
        transform_patch<M>([&](int i, int j) { return Lanes::load(p + i * down + j * plan_.in); },
                           patches + t * plan_.in_row + c, next);
      }
    }
    for (int64_t t = run_; t % kRows != 0; ++t) {
      for (int f = 0; f < kPatch; ++f) {
        memset(patches + f * next + t * plan_.in_row, 0, plan_.in * sizeof(float));
      }
    }
  }

 private:
  const ConvShape& shape_;
  const ConvPlan& plan_;
  float* staged_;
  Tile tile_[ConvPlan::kMaxRun];
  int64_t first_ = 0, images_ = 0, tiles_ = 0, run_ = 0;
};

template <int M>
class Forward {
 public:
  Forward(const ConvArgs& args, const ConvForwardPlan& plan, float* scratch)
      : args_(args), plan_(plan), group_(args.shape, plan, scratch) {
    patches_ = scratch + plan.staged();
    products_ = patches_ + plan.in_factors();
    dense_ = products_ + plan.products();
  }

  void run(int64_t g) {
    const ConvShape& s = args_.shape;
    const int64_t pixels = s.out_height() * s.out_width(), image = pixels * s.out;
    group_.start(g, args_.x);
    float* y = args_.y + group_.first_image() * image;
    float* rows = s.y_is_last ? y : dense_;
    for (int64_t t = 0; t < group_.tiles(); t += plan_.run) {
      group_.set_run(t);
      group_.transform(patches_);
      multiply(rows, s.y_is_last ? s.out : plan_.out);
    }
    if (s.y_is_last) return;
    for (int64_t i = 0; i < group_.images(); ++i) {
      from_rows(rows + i * pixels * plan_.out, s.out, pixels, plan_.out, y + i * image);
    }
  }

 private:
  static constexpr int kPatch = Group<M>::kPatch;

  void multiply(float* rows, int64_t pixel) {
    const int64_t next = plan_.run * plan_.in_row;
    const int64_t count = ceil_div(group_.run(), kRows) * kRows;
    for (int64_t c = 0; c < plan_.out; c += kBlock) {
      const float* kernel = args_.kernel + c * kPatch * plan_.in;
      for (int f = 0; f < kPatch; ++f, kernel += plan_.in * kBlock) {
        for (int64_t t = 0; t < count; t += kRows) {
          multiply_tiles(patches_ + f * next + t * plan_.in_row, plan_.in_row, kernel, plan_.in,
                         products_ + (t * kPatch + f) * kBlock, kPatch * kBlock);
        }
      }
      for (int64_t t = 0; t < group_.run(); ++t) {
        for (int half = 0; half < kBlock && c + half < args_.shape.out; half += L) {
          finish(group_.tile(t), products_ + t * kPatch * kBlock + half, c + half, rows, pixel);
        }
      }
    }
  }

  void finish(const typename Group<M>::Tile& tile, const float* products, int64_t c, float* rows,
              int64_t pixel) const {
    const int64_t lanes = args_.shape.out - c, down = args_.shape.out_width() * pixel;
    const Float bias = args_.bias ? load_first(args_.bias + c, lanes) : Lanes::splat(0.0f);
    float* out = rows + tile.dense * pixel + c;
    transform_result<M>(products, tile.height, [&](int i, const Float(&y)[M]) {
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        if (j >= tile.width) break;
        store_first(out + i * down + j * pixel, y[j] + bias, lanes);
      }
    });
  }

  const ConvArgs& args_;
  const ConvForwardPlan& plan_;
  Group<M> group_;
  float *patches_, *products_, *dense_;
};

// The first pass of the kernel's gradient.
template <int M>
class Gradient {
 public:
  Gradient(const ConvGradientArgs& args, const ConvGradientPlan& plan, float* scratch)
      : args_(args), plan_(plan), group_(args.shape, plan, scratch) {
    dense_ = scratch + plan.staged();
    factors_ = dense_ + plan.dense(args.shape);
    if (!args.shape.y_is_last) memset(dense_, 0, plan.dense(args.shape) * sizeof(float));
  }

  // The factors of the group's runs, one after the other.
  void keep(int64_t g, float* factors) {
    const float* rows = start(g);
    for (int64_t t = 0; t < group_.tiles(); t += plan_.run, factors += plan_.factors()) {
      set_factors(t, rows, factors);
    }
  }

  // sums[f, o, i] += sum over the group's tiles of the products of their factors.
  void add(int64_t g, float* sums) {
    const float* rows = start(g);
    for (int64_t t = 0; t < group_.tiles(); t += plan_.run) {
      set_factors(t, rows, factors_);
      const float *a = factors_, *b = factors_ + kPatch * plan_.run * plan_.out_row;
      float* sum = sums;
      for (int f = 0; f < kPatch; ++f, sum += plan_.out * plan_.in) {
        for (int64_t i = 0; i < plan_.in; i += kBlock) {
          for (int64_t o = 0; o < plan_.out; o += kRows) {
            multiply_tiles_transposed(a + o, plan_.out_row, b + i, plan_.in_row, group_.run(), 1, 0,
                                      sum + o * plan_.in + i, plan_.in);
          }
        }
        a += plan_.run * plan_.out_row, b += plan_.run * plan_.in_row;
      }
    }
  }

 private:
  static constexpr int kPatch = Group<M>::kPatch;

  // The gradient's rows, staged like x.
  const float* start(int64_t g) {
    const ConvShape& s = args_.shape;
    group_.start(g, args_.x);
    const int64_t pixels = s.out_height() * s.out_width(), image = pixels * s.out;
    const float* grad = args_.grad + group_.first_image() * image;
    if (s.y_is_last) return grad;
    const Rows rows{s.out_width(), s.out_width() * plan_.out, plan_.out};
    for (int64_t i = 0; i < group_.images(); ++i) {
      to_rows(grad + i * image, s.out, pixels, false, plan_.out, rows,
              dense_ + i * pixels * plan_.out);
    }
    return dense_;
  }

  void set_factors(int64_t first, const float* rows, float* factors) {
    const ConvShape& s = args_.shape;
    group_.set_run(first);
    const int64_t pixel = s.y_is_last ? s.out : plan_.out, down = s.out_width() * pixel;
    const int64_t next = plan_.run * plan_.out_row;
    for (int64_t t = 0; t < group_.run(); ++t) {
      const auto& tile = group_.tile(t);
      const float* p = rows + tile.dense * pixel;
      for (int64_t c = 0; c < plan_.out; c += L) {
        transform_result_adjoint<M>(
            [&](int i, int j) {
              return i < tile.height && j < tile.width
                         ? load_first(p + i * down + j * pixel + c, pixel - c)
                         : Lanes::splat(0.0f);
            },
            factors + t * plan_.out_row + c, next);
      }
    }
    group_.transform(factors + kPatch * next);
  }

  const ConvGradientArgs& args_;
  const ConvGradientPlan& plan_;
  Group<M> group_;
  float *dense_, *factors_;
};

// Lanes i of grad[o, i, 3, 3], i from i0 to n at most, from the sums load(f).
template <int M, class Load>
void store_gradient(const Load& load, int64_t o, int64_t i0, int64_t n, float* grad) {
  float taps[9][L];
  transform_kernel_adjoint<M>(load, taps);
  float* out = grad + (o * n + i0) * 9;
  for (int64_t i = 0; i < L && i0 + i < n; ++i) {
    for (int tap = 0; tap < 9; ++tap) *out++ = taps[tap][i];
  }
}

// taps[t]: tap t of L kernels `next` apart, zeros for those beyond `count`.
void load_taps(const float* kernels, int64_t next, int count, Float (&taps)[9]) {
  Float v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    v[i] = i < count ? load_first(kernels + i * next, 9) : Lanes::splat(0.0f);
  }
  Lanes::transpose(v);
#pragma GCC unroll 9
  for (int t = 0; t < 9 && t < L; ++t) taps[t] = v[t];
  if constexpr (L < 9) {
    float last[L] = {};
    for (int i = 0; i < count; ++i) last[i] = kernels[i * next + 8];
    taps[8] = Lanes::load(last);
  }
}

}  // namespace

void conv(const ConvArgs& args, float* scratch, int64_t begin, int64_t end) {
  const ConvForwardPlan plan(args.shape, kBlock);
  dispatch_tile(args.shape.tile, [&](auto tile) {
    Forward<tile> forward(args, plan, scratch);
    for (int64_t g = begin; g < end; ++g) forward.run(g);
  });
}

void conv_kernel(const ConvKernelArgs& args, int64_t begin, int64_t end) {
  const int64_t padded = ceil_div(args.in, L) * L;
  // Where the taps of one (input, output) lie, outputs in the lanes.
  const int64_t by_out = args.transposed ? 9 : args.in * 9;
  const int64_t by_in = args.transposed ? args.out * 9 : 9;
  dispatch_tile(args.tile, [&](auto tile) {
    constexpr int A = tile + 2;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t o = unit * L;
      const int lanes = static_cast<int>(args.out - o < L ? args.out - o : L);
      float* out = args.packed + o / kBlock * A * A * padded * kBlock + o % kBlock;
      for (int64_t i = 0; i < padded; ++i, out += kBlock) {
        Float taps[9];
        load_taps(args.weight + o * by_out + i * by_in, by_out, i < args.in ? lanes : 0, taps);
        Float half[3][A];
#pragma GCC unroll 3
        for (int y = 0; y < 3; ++y) {
          const int flip = args.transposed ? 8 : 0, t = args.transposed ? -1 : 1;
          const Float g[3] = {taps[flip + t * 3 * y], taps[flip + t * (3 * y + 1)],
                              taps[flip + t * (3 * y + 2)]};
          Winograd<tile>::kernel(g, half[y]);
        }
#pragma GCC unroll 6
        for (int fx = 0; fx < A; ++fx) {
          const Float g[3] = {half[0][fx], half[1][fx], half[2][fx]};
          Float u[A];
          Winograd<tile>::kernel(g, u);
#pragma GCC unroll 6
          for (int fy = 0; fy < A; ++fy) Lanes::store(out + (fy * A + fx) * padded * kBlock, u[fy]);
        }
      }
    }
  });
}

void conv_factors(const ConvGradientArgs& args, float* scratch, int64_t begin, int64_t end) {
  const ConvGradientPlan plan(args.shape, kBlock);
  dispatch_tile(args.shape.tile, [&](auto tile) {
    Gradient<tile> gradient(args, plan, scratch);
    for (int64_t unit = begin; unit < end; ++unit) {
      if (plan.factors_kept) {
        gradient.keep(unit, args.work + unit * plan.runs * plan.factors());
        continue;
      }
      float* sums = args.work + unit * plan.sums();
      memset(sums, 0, plan.sums() * sizeof(float));
      const int64_t last = (unit + 1) * plan.groups / plan.chunks;
      for (int64_t g = unit * plan.groups / plan.chunks; g < last; ++g) gradient.add(g, sums);
    }
  });
}

void conv_gradient(const ConvGradientArgs& args, float* scratch, int64_t begin, int64_t end) {
  const ConvGradientPlan plan(args.shape, kBlock);
  const int64_t n = args.shape.in, outs = args.shape.out;
  dispatch_tile(args.shape.tile, [&](auto tile) {
    constexpr int kPatch = Group<tile>::kPatch;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (!plan.factors_kept) {
        for (int64_t i = 0; unit < outs && i < n; i += L) {
          store_gradient<tile>(
              [&](int f) {
                Float sum = Lanes::splat(0.0f);
                for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
                  const float* sums = args.work + chunk * plan.sums();
                  sum += Lanes::load(sums + (f * plan.out + unit) * plan.in + i);
                }
                return sum;
              },
              unit, i, n, args.grad_weight);
        }
        continue;
      }
      const int64_t blocks = plan.in / kBlock;
      const int64_t o0 = unit / blocks * plan.kPanel, i0 = unit % blocks * kBlock;
      const int64_t o1 = o0 + plan.kPanel < plan.out ? o0 + plan.kPanel : plan.out;
      memset(scratch, 0, plan.second_scratch() * sizeof(float));
      for (int f = 0; f < kPatch; ++f) {
        const float* factors = args.work;
        for (int64_t g = 0; g < plan.groups; ++g) {
          int64_t tiles = (args.shape.images - g * plan.group) * plan.tiles;
          if (tiles > plan.group * plan.tiles) tiles = plan.group * plan.tiles;
          for (int64_t r = 0; r < plan.runs; ++r, tiles -= plan.run, factors += plan.factors()) {
            const int64_t rows = tiles < plan.run ? tiles : plan.run;
            const float* a = factors + f * plan.run * plan.out_row;
            const float* b =
                factors + plan.patch * plan.run * plan.out_row + f * plan.run * plan.in_row + i0;
            for (int64_t o = o0; o < o1; o += kRows) {
              multiply_tiles_transposed(a + o, plan.out_row, b, plan.in_row, rows, 1, 0,
                                        scratch + (f * plan.kPanel + o - o0) * kBlock, kBlock);
            }
          }
        }
      }
      for (int64_t o = o0; o < o1 && o < outs; ++o) {
        for (int half = 0; half < kBlock && i0 + half < n; half += L) {
          store_gradient<tile>(
              [&](int f) {
                return Lanes::load(scratch + (f * plan.kPanel + o - o0) * kBlock + half);
              },
              o, i0 + half, n, args.grad_weight);
        }
      }
    }
  });
}

#endif

}  // namespace RC_ISA
}  // namespace robustcore::density
