// A polynomial of a 3 x 3 convolution, all its degrees while a group of images is in the cache:
// transformed patches, one small matrix product a patch element, results with their epilogue.
#include "common/winograd_tiles.h"
#include "lipschitz/simd.h"

namespace robustcore::lipschitz {
inline namespace RC_ISA {

#if defined(__AVX2__)
namespace {

using Float = Lanes::Float;
constexpr int L = Lanes::kFloats;
constexpr int kBlock = kTileBlock;
constexpr int kRows = SeriesPlan::kRows, kPanel = SeriesPlan::kPanel;
static_assert(kRows == kTileRows);

// What one step does with its result z besides scaling it. Absent parts are null.
struct Epilogue {
  float scale, own, carry, total_scale;
  const float *x, *after;  // staged: + own * x + carry * after
  float* staged;           // the new u or m
  float* dense;            // the same for the caller
  float* total;            // dense: += total_scale * u
};

template <int M>
class Group {
 public:
  static constexpr int kPatch = (M + 2) * (M + 2);

  Group(const SeriesArgs& args, const SeriesPlan& plan, float* scratch) : args_(args), plan_(plan) {
    const auto take = [&](int64_t floats) {
      float* p = scratch;
      scratch += floats;
      return p;
    };
    for (float*& p : staged_) {
      p = take(plan.staged());
      memset(p, 0, plan.staged() * sizeof(float));  // the border stays zero from here on
    }
    products_ = take(plan.products());
    kept_ = take(plan.kept);
    if (!plan.factors_kept) set_factors(take(plan.factors()));
  }

  void set_factors(float* factors) {
    patches_ = factors;
    others_ = factors + plan_.pairs * plan_.patches;
  }

  // y, if it is wanted, and u[k] at kept + (k - 1) * stride.
  void forward(int64_t first_image, float* kept, int64_t stride, float* y) {
    const int64_t d = args_.degree;
    start(first_image);
    stage(args_.x + first_image * image_floats(), staged_[0]);
    const float last = args_.coefficients[d];
    const int64_t stop = y ? 0 : 1;
    for (int64_t k = d - 1; k >= stop; --k) {
      Epilogue e{};
      e.x = staged_[0];
      e.scale = k ? args_.step : args_.first;
      e.own = args_.coefficients[k];
      const float* from = buffer(k + 1);
      if (k == d - 1) {  // u[d] is a multiple of x
        from = staged_[0];
        e.scale *= last;
      } else if (k == d - 2) {
        e.own = __builtin_fmaf(args_.carry, last, e.own);
      } else if (args_.carry != 0.0f) {
        e.after = buffer(k);
        e.carry = args_.carry;
      }
      e.staged = k ? buffer(k) : nullptr;
      e.dense = k ? (kept ? kept + (k - 1) * stride : nullptr) : y;
      for (int64_t t = 0; t < tiles_; t += plan_.run) {
        set_run(t);
        transform(from, 0);
        convolve(e, 0);
      }
    }
  }

  // grad_x, and this group's share of the sums, unless its factors are kept for later.
  void backward(int64_t first_image, const float* grad, const float* kept, int64_t stride,
                float* grad_x, float* sums) {
    const int64_t d = args_.degree;
    if (!kept && d > 1) {
      stride = plan_.group * image_floats();
      forward(first_image, kept_, stride, nullptr);
      kept = kept_;
    }
    start(first_image);
    stage(grad, staged_[1]);
    for (int64_t i = 0; i < images_ * image_floats(); ++i) {
      grad_x[i] = args_.coefficients[0] * grad[i];
    }
    for (int64_t k = 0; k < d; ++k) {
      const float scale = k ? args_.step : args_.first;
      Epilogue e{};
      e.scale = -scale;  // the transpose of L is -L
      if (k > 0 && args_.carry != 0.0f) {
        e.after = staged_[1 + (k + 1) % 2];
        e.carry = args_.carry;
      }
      e.staged = staged_[1 + (k + 1) % 2];
      e.total = grad_x;
      e.total_scale = args_.coefficients[k + 1];
      const float* u = k + 1 < d ? kept + k * stride : args_.x + first_image * image_floats();
      const float weight = k + 1 < d ? scale : scale * args_.coefficients[d];
      for (int64_t t = 0; t < tiles_; t += plan_.run) {
        set_run(t);
        const int64_t pair = plan_.deferred ? k : 0;
        transform(staged_[1 + k % 2], pair);
        convolve(e, pair);
        transform_adjoint(u, weight, pair);
        if (!plan_.deferred) accumulate(sums);
      }
    }
    if (plan_.deferred && sums) accumulate(sums);
  }

 private:
  int64_t image_floats() const {
    return args_.height * args_.width * args_.channels;
  }
  float* buffer(int64_t k) const {
    return staged_[1 + k % 2];
  }

  void start(int64_t first_image) {
    first_ = first_image;
    images_ = args_.images - first_ < plan_.group ? args_.images - first_ : plan_.group;
    tiles_ = images_ * plan_.tiles;
  }

  void stage(const float* dense, float* staged) const {
    const int64_t c = args_.channels, w = args_.width;
    const float* p = dense;
    for (int64_t i = 0; i < images_; ++i) {
      for (int64_t y = 0; y < args_.height; ++y) {
        float* q =
            staged + ((i * plan_.staged_height + y + 1) * plan_.staged_width + 1) * plan_.padded;
        for (int64_t x = 0; x < w; ++x, p += c, q += plan_.padded) {
          memcpy(q, p, c * sizeof(float));
        }
      }
    }
  }

  struct Tile {
    int64_t staged, dense;  // offsets of its first output, less the border in `staged`
    int height, width;      // of what lies in the image
  };

  void set_run(int64_t first) {
    run_ = tiles_ - first < plan_.run ? tiles_ - first : plan_.run;
    for (int64_t t = 0; t < run_; ++t) {
      const int64_t image = (first + t) / plan_.tiles, rest = (first + t) % plan_.tiles;
      const int64_t y = rest / plan_.tiles_x * M, x = rest % plan_.tiles_x * M;
      const int64_t high = args_.height - y, wide = args_.width - x;
      tile_[t] = {((image * plan_.staged_height + y) * plan_.staged_width + x) * plan_.padded,
                  ((image * args_.height + y) * args_.width + x) * args_.channels,
                  static_cast<int>(high < M ? high : M), static_cast<int>(wide < M ? wide : M)};
    }
  }

  // patches_[f, t, c]: the transformed patches of the run's tiles. Rows beyond them are computed
  // with and dropped; they must not be slow denormals.
  void transform(const float* staged, int64_t pair) {
    const int64_t down = plan_.staged_width * plan_.padded, right = plan_.padded;
    const int64_t next = plan_.run * plan_.row;
    for (int64_t t = 0; t < run_; ++t) {
      for (int64_t c = 0; c < plan_.padded; c += L) {
        const float* p = staged + tile_[t].staged + c;
        transform_patch<M>([&](int i, int j) { return Lanes::load(p + i * down + j * right); },
                           patches_ + pair * plan_.patches + t * plan_.row + c, next);
      }
    }
    for (int64_t t = run_; t % kRows != 0; ++t) {
      for (int f = 0; f < kPatch; ++f) {
        float* p = patches_ + pair * plan_.patches + f * next + t * plan_.row;
        memset(p, 0, plan_.row * sizeof(float));
      }
    }
  }

  // others_[f, t, c]: the adjoint of `result` on weight * u.
  void transform_adjoint(const float* u, float weight, int64_t pair) {
    const int64_t down = args_.width * args_.channels, right = args_.channels;
    const int64_t next = plan_.run * plan_.row;
    const Float scale = Lanes::splat(weight);
    for (int64_t t = 0; t < run_; ++t) {
      const Tile& tile = tile_[t];
      for (int64_t c = 0; c < plan_.padded; c += L) {
        const float* p = u + tile.dense + c;
        const int64_t lanes = args_.channels - c;
        transform_result_adjoint<M>(
            [&](int i, int j) {
              return i < tile.height && j < tile.width
                         ? scale * load_first(p + i * down + j * right, lanes)
                         : Lanes::splat(0.0f);
            },
            others_ + pair * plan_.patches + t * plan_.row + c, next);
      }
    }
  }

  // L of the patches' image on the run's tiles, and what the epilogue makes of it.
  void convolve(const Epilogue& e, int64_t pair) {
    const float* patches = patches_ + pair * plan_.patches;
    const int64_t next = plan_.run * plan_.row;
    const int64_t rows = ceil_div(run_, kRows) * kRows;
    for (int64_t c = 0; c < plan_.padded; c += kBlock) {
      const float* kernel = args_.kernel + c * kPatch * plan_.padded;
      for (int f = 0; f < kPatch; ++f, kernel += plan_.padded * kBlock) {
        for (int64_t t = 0; t < rows; t += kRows) {
          multiply_tiles(patches + f * next + t * plan_.row, plan_.row, kernel, plan_.padded,
                         products_ + (t * kPatch + f) * kBlock, kPatch * kBlock);
        }
      }
      for (int64_t t = 0; t < run_; ++t) {
        const float* product = products_ + t * kPatch * kBlock;
        finish(e, tile_[t], product, c);
        finish(e, tile_[t], product + L, c + L);
      }
    }
  }

  void finish(const Epilogue& e, const Tile& tile, const float* product, int64_t c) {
    const Float scale = Lanes::splat(e.scale), own = Lanes::splat(e.own);
    const Float carry = Lanes::splat(e.carry), total_scale = Lanes::splat(e.total_scale);
    const int64_t lanes = args_.channels - c;
    transform_result<M>(product, tile.height, [&](int i, const Float(&out)[M]) {
      const int64_t s = tile.staged + ((i + 1) * plan_.staged_width + 1) * plan_.padded + c;
      const int64_t d = tile.dense + i * args_.width * args_.channels + c;
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        if (j >= tile.width) break;
        const int64_t sj = s + j * plan_.padded, dj = d + j * args_.channels;
        Float v = scale * out[j];
        if (e.x) v = Lanes::fma(own, Lanes::load(e.x + sj), v);
        if (e.after) v = Lanes::fma(carry, Lanes::load(e.after + sj), v);
        if (e.staged) Lanes::store(e.staged + sj, v);
        if (lanes <= 0) continue;
        if (e.dense) store_first(e.dense + dj, v, lanes);
        if (e.total) {
          store_first(e.total + dj, Lanes::fma(total_scale, v, load_first(e.total + dj, lanes)),
                      lanes);
        }
      }
    });
  }

  // sums[f, i, j] += sum over the run, and over the pairs at hand, of patches_[f, t, i]
  // others_[f, t, j]
  void accumulate(float* sums) const {
    const int64_t next = plan_.run * plan_.row, n = plan_.padded;
    for (int f = 0; f < kPatch; ++f, sums += n * n) {
      for (int64_t j = 0; j < n; j += kBlock) {
        for (int64_t i = 0; i < n; i += kRows) {
          const float *a = patches_ + f * next + i, *b = others_ + f * next + j;
          multiply_tiles_transposed(a, plan_.row, b, plan_.row, run_, plan_.pairs, plan_.patches,
                                    sums + i * n + j, n);
        }
      }
    }
  }

  const SeriesArgs& args_;
  const SeriesPlan& plan_;
  float *staged_[3], *patches_, *others_, *products_, *kept_;
  Tile tile_[SeriesPlan::kMaxRun];
  int64_t first_ = 0, images_ = 0, tiles_ = 0, run_ = 0;
};

SeriesPlan backward_plan(const SeriesArgs& args) {
  return SeriesPlan(args, kBlock, args.kept ? SeriesPlan::kBackward : SeriesPlan::kRecompute);
}

// Lanes i of grad[o, i, 3, 3], i from i0 to n at most, from the sums load(f) of <u[i], L m[o]>:
// with m's channels as the input, its kernel is the flipped transpose of that of <m[o], L u[i]>.
template <int M, class Load>
void store_gradient(const Load& load, int64_t o, int64_t i0, int64_t n, float* grad) {
  float taps[9][L];
  transform_kernel_adjoint<M>(load, taps);
  float* out = grad + (o * n + i0) * 9;
  for (int64_t i = 0; i < L && i0 + i < n; ++i) {
    for (int tap = 8; tap >= 0; --tap) *out++ = taps[tap][i];
  }
}

}  // namespace

void series(const SeriesArgs& args, float* scratch, int64_t begin, int64_t end) {
  const SeriesPlan plan(args, kBlock, SeriesPlan::kForward);
  const int64_t image = args.height * args.width * args.channels;
  dispatch_tile(args.tile, [&](auto tile) {
    Group<tile> group(args, plan, scratch);
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * plan.group;
      group.forward(first, args.kept ? args.kept + first * image : nullptr, args.images * image,
                    args.y + first * image);
    }
  });
}

void series_backward(const SeriesBackwardArgs& args, float* scratch, int64_t begin, int64_t end) {
  const SeriesArgs& series = args.series;
  const SeriesPlan plan = backward_plan(series);
  const int64_t image = series.height * series.width * series.channels;
  dispatch_tile(series.tile, [&](auto tile) {
    Group<tile> group(series, plan, scratch);
    const auto run = [&](int64_t g, float* sums) {
      const int64_t first = g * plan.group;
      group.backward(first, args.grad + first * image,
                     series.kept ? series.kept + first * image : nullptr, series.images * image,
                     args.grad_x + first * image, sums);
    };
    for (int64_t unit = begin; unit < end; ++unit) {
      if (plan.factors_kept) {
        group.set_factors(args.work + unit * plan.factors());
        run(unit, nullptr);
        continue;
      }
      float* sums = args.work + unit * plan.sums;
      memset(sums, 0, plan.sums * sizeof(float));
      const int64_t last = (unit + 1) * plan.groups / plan.chunks;
      for (int64_t g = unit * plan.groups / plan.chunks; g < last; ++g) run(g, sums);
    }
  });
}

void series_gradient(const SeriesBackwardArgs& args, float* scratch, int64_t begin, int64_t end) {
  const SeriesArgs& series = args.series;
  const SeriesPlan plan = backward_plan(series);
  const int64_t n = series.channels, padded = plan.padded, next = plan.run * plan.row;
  dispatch_tile(series.tile, [&](auto tile) {
    constexpr int kPatch = (tile + 2) * (tile + 2);
    if (!plan.factors_kept) {
      for (int64_t o = begin; o < end && o < n; ++o) {
        for (int64_t i = 0; i < n; i += L) {
          store_gradient<tile>(
              [&](int f) {
                Float sum = Lanes::splat(0.0f);
                for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
                  const float* sums = args.work + chunk * plan.sums;
                  sum += Lanes::load(sums + (f * padded + o) * padded + i);
                }
                return sum;
              },
              o, i, n, args.grad_kernel);
        }
      }
      return;
    }
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t o0 = panel * kPanel;
      const int64_t o1 = o0 + kPanel < padded ? o0 + kPanel : padded;
      for (int64_t i0 = 0; i0 < padded; i0 += kBlock) {
        memset(scratch, 0, plan.gradient_scratch() * sizeof(float));
        for (int f = 0; f < kPatch; ++f) {
          for (int64_t g = 0; g < plan.groups; ++g) {
            const float* a = args.work + g * plan.factors() + f * next;
            const float* b = a + plan.pairs * plan.patches + i0;
            const int64_t left = (series.images - g * plan.group) * plan.tiles;
            const int64_t rows = left < plan.group * plan.tiles ? left : plan.group * plan.tiles;
            for (int64_t o = o0; o < o1; o += kRows) {
              multiply_tiles_transposed(a + o, plan.row, b, plan.row, rows, plan.pairs,
                                        plan.patches, scratch + (f * kPanel + o - o0) * kBlock,
                                        kBlock);
            }
          }
        }
        for (int64_t o = o0; o < o1 && o < n; ++o) {
          for (int half = 0; half < kBlock; half += L) {
            store_gradient<tile>(
                [&](int f) { return Lanes::load(scratch + (f * kPanel + o - o0) * kBlock + half); },
                o, i0 + half, n, args.grad_kernel);
          }
        }
      }
    }
  });
}

void series_kernel(const SeriesKernelArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.channels, padded = ceil_div(n, kBlock) * kBlock;
  dispatch_tile(args.tile, [&](auto tile) {
    constexpr int A = tile + 2;
    for (int64_t o = begin; o < end; ++o) {
      // Output channel o is column o % kBlock of its block.
      float* out = args.out + o / kBlock * A * A * padded * kBlock + o % kBlock;
      for (int64_t i = 0; i < padded; ++i, out += kBlock) {
        double half[3][A], value[A];
        for (int y = 0; y < 3; ++y) {
          double g[3] = {};
          for (int x = 0; x < 3 && o < n && i < n; ++x) {
            g[x] = args.kernel[((o * n + i) * 3 + y) * 3 + x];
          }
          Winograd<tile>::kernel(g, half[y]);
        }
        for (int fx = 0; fx < A; ++fx) {
          const double g[3] = {half[0][fx], half[1][fx], half[2][fx]};
          Winograd<tile>::kernel(g, value);
          for (int fy = 0; fy < A; ++fy) {
            out[(fy * A + fx) * padded * kBlock] = static_cast<float>(value[fy]);
          }
        }
      }
    }
  });
}

#endif

}  // namespace RC_ISA
}  // namespace robustcore::lipschitz
