// Executes the influence kernels through the shim and compares them with the CPU kernels, bit for
// bit. Prints one line a case; the exit status is the number of cases that differ (at most 99).
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "influence/projection.h"

using namespace robustcore;
using namespace robustcore::influence;

namespace {

// Rows that cross a multiple of 2^32.
constexpr int64_t kRowOffset = (int64_t{5} << 32) - 70;

void project_on_cpu(const ProjectionArgs& args) {
  std::vector<double> scratch(kProjectScratch / 2);
  for_rounds(args, [&](const ProjectionArgs& round) {
    project_baseline(round, reinterpret_cast<float*>(scratch.data()), 0, round.units());
    if (round.parts) add_parts_baseline(round, 0, round.tiles);
  });
}

template <class In>
void check_projection(int64_t samples, int64_t terms, int64_t outputs, bool normal,
                      bool transposed) {
  using T = Arithmetic<In>;
  const auto x = random_values<In>(samples * terms, 3);
  ProjectionArgs args{};
  args.normal = normal, args.transposed = transposed;
  args.seed = 0x9E3779B97F4A7C15u, args.row_offset = kRowOffset;
  args.samples = samples, args.terms = terms, args.outputs = outputs;
  args.x.data = x.data(), args.x.dtype = kType<In>, args.x.dims = 1;
  args.x.image_stride = 1, args.x.sizes[0] = terms, args.x.strides[0] = samples;  // x transposed
  std::vector<T> cpu(samples * outputs, T(7)), gpu(samples * outputs, T(8));
  std::vector<T> parts(args.all_parts() * kPartElements, T(NAN));
  args.parts = parts.empty() ? nullptr : parts.data();
  args.out = cpu.data();
  project_on_cpu(args);
  args.out = gpu.data();
  project_cuda(args, nullptr);
  report(std::string(normal ? "normal" : "rademacher") + (transposed ? ", transposed " : " ") +
             std::to_string(samples) + "x" + std::to_string(terms) + " to " +
             std::to_string(outputs) + ", dtype " + std::to_string(static_cast<int>(kType<In>)),
         std::memcmp(cpu.data(), gpu.data(), cpu.size() * sizeof(T)) == 0);
}

}  // namespace

int main() {
  for (const bool normal : {false, true}) {
    for (const bool transposed : {false, true}) {
      for (const auto& [samples, terms, outputs] :
           {std::array<int64_t, 3>{1, 1, 1}, {3, 100, 7}, {33, 130, 300}, {2, 1025, 513}}) {
        check_projection<float>(samples, terms, outputs, normal, transposed);
        check_projection<double>(samples, terms, outputs, normal, transposed);
        check_projection<Half>(samples, terms, outputs, normal, transposed);
        check_projection<BFloat16>(samples, terms, outputs, normal, transposed);
      }
    }
  }
  // More segments than are kept at a time: two rounds.
  check_projection<double>(1, 64 * kSegment + 3, 3, false, false);
  return finish();
}
