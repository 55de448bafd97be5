// Random projections by a matrix P [rows, k] that is never stored: entry (i, c) is a function of
// (seed, i, c) alone, so tiles, batches, devices and machines agree about it.
//
// Row i and columns take this place in the stream of common/stream.h: counter word 0 is the low 32
// bits of i, the image is i >> 32, and the sample a block of columns. kRademacher: block c / 128;
// entry (i, c) is -1 where bit c % 32 of word c % 128 / 32 is set, else 1. kNormal: block c / 4;
// words 0 and 1 are the radius and the angle of the normals (box_muller in common/math.h) of
// columns 4 b and 4 b + 1, words 2 and 3 those of the next two.
//
// An output is the sum over `terms` (rows of P; for the transpose, its columns) in one order on
// every device: fused multiply-adds from 0 along each segment of kSegment terms, then the segments
// added in turn. So neither threads nor batches change a bit.
#pragma once

#include "common/math.h"
#include "common/stream.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::influence {

constexpr int64_t kSegment = 1024;

constexpr int64_t kMaxRows = int64_t{1} << 62;
constexpr int64_t kMaxColumns = (int64_t{1} << 31) - 1;

// A tile of outputs, of one segment: what a unit computes. Many samples share its part of P.
constexpr int64_t kTileSamples = 32, kTileOutputs = 512;
constexpr int64_t kPartElements = kTileSamples * kTileOutputs;
// Of the sums of segments that are kept at a time.
constexpr int64_t kPartBytes = int64_t{8} << 20;

// out = x P, or out = x P^T.
struct ProjectionArgs {
  bool normal, transposed;
  uint64_t seed;
  int64_t row_offset;               // the row of P that comes first
  int64_t samples, terms, outputs;  // x is [samples, terms], out is [samples, outputs]
  StridedView x;
  void* out;    // contiguous, double where x is, else float
  void* parts;  // a tile a unit, [kTileSamples, kTileOutputs] each; null if there is one segment
  // The tiles and segments of one round: as many as there are parts.
  int64_t first_tile, tiles, first_segment, segments;

  constexpr int64_t output_tiles() const {
    return ceil_div(outputs, kTileOutputs);
  }
  constexpr int64_t all_tiles() const {
    return ceil_div(samples, kTileSamples) * output_tiles();
  }
  constexpr int64_t all_segments() const {
    return ceil_div(terms, kSegment);
  }
  constexpr int64_t units() const {
    return tiles * segments;
  }
  // How many parts there are at a time.
  constexpr int64_t all_parts() const {
    const int64_t kept = kPartBytes / (kPartElements * (x.dtype == DType::kFloat64 ? 8 : 4));
    return all_segments() == 1                        ? 0
           : all_tiles() >= kept / all_segments() + 1 ? kept
                                                      : all_tiles() * all_segments();
  }
};

// What a unit computes: first and count of samples, outputs and terms.
struct ProjectionTile {
  int64_t sample, samples, output, outputs, term, terms;
};

// Calls body(round) for the rounds that fill `parts` and empty it again.
template <class Body>
void for_rounds(const ProjectionArgs& args, const Body& body) {
  const auto at_most = [](int64_t n, int64_t left) { return n < left ? n : left; };
  const int64_t parts = args.all_parts();
  const int64_t tiles = args.all_tiles(), segments = args.all_segments();
  const int64_t together = parts > 0 ? at_most(segments, parts) : 1;
  const int64_t side_by_side = parts > 0 ? at_most(tiles, parts / together) : tiles;
  ProjectionArgs round = args;
  for (round.first_tile = 0; round.first_tile < tiles; round.first_tile += side_by_side) {
    round.tiles = at_most(side_by_side, tiles - round.first_tile);
    for (round.first_segment = 0; round.first_segment < segments; round.first_segment += together) {
      round.segments = at_most(together, segments - round.first_segment);
      body(round);
    }
  }
}

constexpr int64_t kProjectScratch = 80 * 1024;  // floats of a thread
// Units are those of a round; the sums of its segments are then added to `out`, a unit a tile.
RC_VARIANTS(project, const ProjectionArgs& args, float* scratch, int64_t begin, int64_t end);
RC_VARIANTS(add_parts, const ProjectionArgs& args, int64_t begin, int64_t end);
void project_cuda(const ProjectionArgs& args, void* stream);

inline namespace RC_ISA {

RC_HOST_DEVICE ProjectionTile tile_of(const ProjectionArgs& args, int64_t unit) {
  const auto at_most = [](int64_t n, int64_t left) { return n < left ? n : left; };
  const int64_t tile = args.first_tile + unit % args.tiles;
  const int64_t segment = args.first_segment + unit / args.tiles;
  const int64_t across = (args.outputs + kTileOutputs - 1) / kTileOutputs;
  ProjectionTile t{};
  t.sample = tile / across * kTileSamples;
  t.samples = at_most(kTileSamples, args.samples - t.sample);
  t.output = tile % across * kTileOutputs;
  t.outputs = at_most(kTileOutputs, args.outputs - t.output);
  t.term = segment * kSegment;
  t.terms = at_most(kSegment, args.terms - t.term);
  return t;
}

// Where a unit's sums go: to the output itself if there is one segment.
template <class T>
struct Place {
  T* data;
  int64_t stride;  // between samples

  RC_HOST_DEVICE Place(const ProjectionArgs& args, const ProjectionTile& tile, int64_t unit)
      : data(args.parts ? static_cast<T*>(args.parts) + unit * kPartElements
                        : static_cast<T*>(args.out) + tile.sample * args.outputs + tile.output),
        stride(args.parts ? kTileOutputs : args.outputs) {}
};

// The row of the stream that holds a block of columns of row i and its neighbours.
RC_HOST_DEVICE PhiloxRow projection_row(const PhiloxKey& key, bool normal, int64_t i,
                                        int64_t block) {
  return stream_row(key, normal ? Domain::kNormal : Domain::kRademacher, i >> 32, block);
}

// 1 or -1 by the sign bit.
template <class L>
RC_HOST_DEVICE typename L::Float sign_of(typename L::Uint bits) {
  return L::template as<typename L::Float>((bits & 0x80000000u) | 0x3F800000u);
}

}  // namespace RC_ISA
}  // namespace robustcore::influence
