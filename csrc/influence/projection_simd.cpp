#include <cstring>

#include "influence/projection.h"

namespace robustcore::influence {
inline namespace RC_ISA {
namespace {

// A step is kStep terms of kStep outputs: the columns of one block of signs, on either side.
constexpr int64_t kStep = 128;

// The matrix of a step lies in panels, [kStep / kPanel, kStep, kPanel]: one stays in L1 while all
// samples pass. The sums of kGroup samples and a panel fill the registers.
template <class L>
constexpr int64_t kVectors = L::kFloats > 1 ? 2 : 8;
template <class L>
constexpr int64_t kPanel = kVectors<L> * L::kFloats;
constexpr int64_t kPanelLanes = kPanel<Lanes>;
constexpr int kGroup = Lanes::kFloats > 8 ? 8 : 4;

// Rows of the stream are drawn in groups whose first is a multiple of this, so none of them goes
// past a multiple of 2^32.
constexpr int64_t kDrawn = Lanes::kElements / 4;

template <class T>
struct ProjectScratch {
  T x[kTileSamples][kStep];
  T part[kTileSamples][kTileOutputs];
  float matrix[kStep * kStep];
  float drawn[4 * (kStep + 2 * kDrawn)];
  uint32_t words[4][kStep];
};
static_assert(sizeof(ProjectScratch<double>) <= kProjectScratch * sizeof(float));

struct Drawer {
  PhiloxKey key;
  PhiloxKeys<Lanes> keys;

  explicit Drawer(uint64_t seed) : key(philox_key(seed)), keys(key) {}

  // Rows [first, first + count) of a block: four words or normals each.
  template <bool kNormal>
  const float* rows(int64_t first, int64_t count, int64_t block, float* drawn) const {
    using Float = Lanes::Float;
    using Uint = Lanes::Uint;
    const int64_t begin = first / kDrawn * kDrawn;
    float* to = drawn;
    for (int64_t i = begin; i < first + count; i += kDrawn, to += Lanes::kElements) {
      const auto column = philox_column<Lanes>(Lanes::counters(static_cast<uint32_t>(i)));
      Float z[Lanes::kVectors];
      words_in_order<Lanes>(projection_row(key, kNormal, i, block), column, keys, z,
                            [](Uint r, Uint t, Float& a, Float& b) {
                              if constexpr (kNormal) {
                                box_muller<Lanes>(r, t, a, b);
                              } else {
                                a = Lanes::as<Float>(r), b = Lanes::as<Float>(t);
                              }
                            });
      for (int v = 0; v < Lanes::kVectors; ++v) Lanes::store(to + v * Lanes::kFloats, z[v]);
    }
    return drawn + 4 * (first - begin);
  }
};

// Where term t of output lane l is, in the panels.
int64_t at(int64_t t, int64_t l) {
  return (l / kPanelLanes * kStep + t) * kPanelLanes + l % kPanelLanes;
}

// ---- the matrix of a step: terms [0, terms), outputs [0, lanes) -----------------------------------

// Rows from `row` on, by columns of the block.
void signs_by_column(const Drawer& drawer, int64_t row, int64_t block, int64_t terms, int64_t lanes,
                     float* drawn, float* matrix) {
  const float* words = drawer.rows<false>(row, terms, block, drawn);
  const auto one = Lanes::splat(1.0f), minus_one = Lanes::splat(-1.0f);
  for (int64_t t = 0; t < terms; ++t) {
    for (int64_t l = 0; l < lanes; l += Lanes::kFloats) {
      const uint32_t negative = bit_cast<uint32_t>(words[4 * t + l / 32]) >> (l % 32);
      Lanes::store(matrix + at(t, l), Lanes::blend(negative, one, minus_one));
    }
  }
}

// The same transposed: terms are the columns of the block.
void signs_by_row(const Drawer& drawer, int64_t row, int64_t block, int64_t terms, int64_t lanes,
                  float* drawn, uint32_t (&words)[4][kStep], float* matrix) {
  const float* rows = drawer.rows<false>(row, lanes, block, drawn);
  for (int64_t l = 0; l < lanes; ++l) {
    for (int w = 0; w < 4; ++w) words[w][l] = bit_cast<uint32_t>(rows[4 * l + w]);
  }
  for (int64_t l = 0; l < lanes; l += Lanes::kFloats) {
    for (int64_t t = 0; t < terms; ++t) {
      Lanes::Uint word;
      memcpy(&word, &words[t / 32][l], sizeof(word));
      const auto shift = static_cast<uint32_t>(31 - t % 32);
      Lanes::store(matrix + at(t, l), sign_of<Lanes>(word << shift));
    }
  }
}

void normals_by_column(const Drawer& drawer, int64_t row, int64_t column, int64_t terms,
                       int64_t lanes, float* drawn, float* matrix) {
  for (int64_t l = 0; l < lanes; l += 4) {
    const float* z = drawer.rows<true>(row, terms, (column + l) / 4, drawn);
    for (int64_t t = 0; t < terms; ++t) memcpy(matrix + at(t, l), z + 4 * t, 4 * sizeof(float));
  }
}

void normals_by_row(const Drawer& drawer, int64_t row, int64_t column, int64_t terms, int64_t lanes,
                    float* drawn, float* matrix) {
  for (int64_t t = 0; t < terms; t += 4) {
    const float* z = drawer.rows<true>(row, lanes, (column + t) / 4, drawn);
    for (int64_t l = 0; l < lanes; ++l) {
      for (int q = 0; q < 4; ++q) matrix[at(t + q, l)] = z[4 * l + q];
    }
  }
}

template <class T>
void fill_matrix(const ProjectionArgs& args, const Drawer& drawer, int64_t term, int64_t terms,
                 int64_t output, int64_t lanes, ProjectScratch<T>& s) {
  const int64_t row = args.row_offset + (args.transposed ? output : term);
  const int64_t column = args.transposed ? term : output;
  if (args.normal && args.transposed) {
    normals_by_row(drawer, row, column, terms, lanes, s.drawn, s.matrix);
  } else if (args.normal) {
    normals_by_column(drawer, row, column, terms, lanes, s.drawn, s.matrix);
  } else if (args.transposed) {
    signs_by_row(drawer, row, column / kStep, terms, lanes, s.drawn, s.words, s.matrix);
  } else {
    signs_by_column(drawer, row, column / kStep, terms, lanes, s.drawn, s.matrix);
  }
}

// ---- its product with the samples ----------------------------------------------------------------

// part += x matrix for kSamples samples and one panel.
template <int kSamples>
void multiply(const float (*x)[kStep], const float* panel, int64_t terms, float* part) {
  using L = Lanes;
  L::Float sums[kSamples][kVectors<L>];
  for (int s = 0; s < kSamples; ++s) {
    for (int v = 0; v < kVectors<L>; ++v)
      sums[s][v] = L::load(part + s * kTileOutputs + v * L::kFloats);
  }
  for (int64_t t = 0; t < terms; ++t, panel += kPanelLanes) {
    L::Float entries[kVectors<L>];
    for (int v = 0; v < kVectors<L>; ++v) entries[v] = L::load(panel + v * L::kFloats);
    for (int s = 0; s < kSamples; ++s) {
      const auto value = L::splat(x[s][t]);
      for (int v = 0; v < kVectors<L>; ++v) sums[s][v] = L::fma(value, entries[v], sums[s][v]);
    }
  }
  for (int s = 0; s < kSamples; ++s) {
    for (int v = 0; v < kVectors<L>; ++v)
      L::store(part + s * kTileOutputs + v * L::kFloats, sums[s][v]);
  }
}

// In float64 the entries are the same float32 numbers.
template <int kSamples>
void multiply(const double (*x)[kStep], const float* panel, int64_t terms, double* part) {
  for (int s = 0; s < kSamples; ++s) {
    const float* entry = panel;
    double sums[kPanelLanes];
    for (int l = 0; l < kPanelLanes; ++l) sums[l] = part[s * kTileOutputs + l];
    for (int64_t t = 0; t < terms; ++t, entry += kPanelLanes) {
      for (int l = 0; l < kPanelLanes; ++l) {
        sums[l] = fused_multiply_add(x[s][t], static_cast<double>(entry[l]), sums[l]);
      }
    }
    for (int l = 0; l < kPanelLanes; ++l) part[s * kTileOutputs + l] = sums[l];
  }
}

template <class T>
void multiply_samples(int64_t samples, int64_t lanes, int64_t terms, int64_t lane,
                      ProjectScratch<T>& s) {
  for (int64_t l = 0; l < lanes; l += kPanelLanes) {
    const float* panel = s.matrix + at(0, l);
    const auto run = [&](auto count, int64_t first) {
      multiply<count()>(&s.x[first], panel, terms, s.part[first] + lane + l);
    };
    int64_t n = 0;
    for (; n + kGroup <= samples; n += kGroup) run(std::integral_constant<int, kGroup>{}, n);
    for (; n + 2 <= samples; n += 2) run(std::integral_constant<int, 2>{}, n);
    for (; n < samples; ++n) run(std::integral_constant<int, 1>{}, n);
  }
}

template <class T>
void project_unit(const ProjectionArgs& args, const Drawer& drawer, int64_t unit,
                  ProjectScratch<T>& s) {
  const ProjectionTile tile = tile_of(args, unit);
  for (int64_t n = 0; n < tile.samples; ++n) {
    memset(s.part[n], 0, sizeof(T) * ceil_div(tile.outputs, kStep) * kStep);
  }
  for (int64_t t = 0; t < tile.terms; t += kStep) {
    const int64_t terms = tile.terms - t < kStep ? tile.terms - t : kStep;
    for (int64_t n = 0; n < tile.samples; ++n) {
      load_elements(args.x, tile.sample + n, 0, tile.term + t, terms, s.x[n]);
    }
    for (int64_t l = 0; l < tile.outputs; l += kStep) {
      const int64_t lanes = tile.outputs - l < kStep ? tile.outputs - l : kStep;
      fill_matrix(args, drawer, tile.term + t, terms, tile.output + l, lanes, s);
      multiply_samples(tile.samples, lanes, terms, l, s);
    }
  }
  const Place<T> to(args, tile, unit);
  for (int64_t n = 0; n < tile.samples; ++n) {
    memcpy(to.data + n * to.stride, s.part[n], tile.outputs * sizeof(T));
  }
}

template <class T>
void add_tile(const ProjectionArgs& args, int64_t unit) {
  const ProjectionTile tile = tile_of(args, unit);
  for (int64_t n = 0; n < tile.samples; ++n) {
    T* out = static_cast<T*>(args.out) + (tile.sample + n) * args.outputs + tile.output;
    if (args.first_segment == 0) memset(out, 0, tile.outputs * sizeof(T));
    for (int64_t s = 0; s < args.segments; ++s) {
      const T* part = static_cast<const T*>(args.parts) + (s * args.tiles + unit) * kPartElements +
                      n * kTileOutputs;
      for (int64_t l = 0; l < tile.outputs; ++l) out[l] += part[l];
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(project)(const ProjectionArgs& args, float* scratch, int64_t begin, int64_t end) {
  const Drawer drawer(args.seed);
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    auto& memory = *reinterpret_cast<ProjectScratch<decltype(tag)>*>(scratch);
    for (int64_t unit = begin; unit < end; ++unit) project_unit(args, drawer, unit, memory);
  });
}

void RC_VARIANT(add_parts)(const ProjectionArgs& args, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    for (int64_t unit = begin; unit < end; ++unit) add_tile<decltype(tag)>(args, unit);
  });
}

}  // namespace robustcore::influence
