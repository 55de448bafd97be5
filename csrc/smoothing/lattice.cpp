#include "smoothing/lattice.h"

#include <cmath>

#include "common/cpu.h"
#include "common/device.h"
#include "smoothing/noise_outputs.h"

namespace robustcore::smoothing {
namespace {

// The table that Python makes once a level of noise.
Lattice lattice_of(const Tensor& thresholds,  // [count, 3] int32
                   double spread) {
  check(thresholds.dim() == 2 && thresholds.size(1) == 3 && thresholds.size(0) >= 1 &&
            thresholds.scalar_type() == ScalarType::Int && thresholds.is_contiguous(),
        "thresholds: got ", name_of(thresholds.scalar_type()), " of shape ", shape_of(thresholds),
        ", want a contiguous int32 tensor [count, 3]");
  check(std::isfinite(spread) && spread > 0, "spread: got ", spread,
        ", want a finite number above 0");
  Lattice lattice{};
  lattice.thresholds = thresholds.const_data_ptr<int32_t>();
  lattice.count = thresholds.size(0);
  lattice.spread = static_cast<float>(spread);
  return lattice;
}

NoiseArgs lattice_args(Distribution distribution,
                       const Tensor& x,  // [B, *D]
                       int64_t num_samples, const Tensor& thresholds, double spread, double grid,
                       double refine, const OptionalTensor& mean, const OptionalTensor& std,
                       const StreamArguments& stream) {
  NoiseArgs args = noise_args(distribution, x, num_samples, 0.0, std::nullopt, mean, std, stream);
  check_same_device("thresholds", thresholds, x, "x");
  args.lattice = lattice_of(thresholds, spread);
  check(grid >= 1 && refine >= 1 && grid == std::floor(grid) && refine == std::floor(refine),
        "grid: got ", grid, " and ", refine, ", want integers, at least 1");
  check(grid * refine + static_cast<double>(args.lattice.count) < 0x1p24, "grid: got ", grid,
        " and ", refine, " with noise up to ", args.lattice.count,
        " steps, want a sum below 2**24, where float32 is exact");
  args.lattice.grid = grid, args.lattice.refine = refine;
  return args;
}

template <Distribution kDistribution>
Tensor lattice_noise(const Tensor& x, int64_t num_samples, const Tensor& thresholds, double spread,
                     double grid, double refine, const OptionalTensor& mean,
                     const OptionalTensor& std, RC_STREAM_PARAMETERS, ScalarType dtype,
                     bool channels_last) {
  return new_noise(lattice_args(kDistribution, x, num_samples, thresholds, spread, grid, refine,
                                mean, std, RC_STREAM_ARGUMENTS),
                   x, dtype, channels_last);
}

template <Distribution kDistribution>
void lattice_noise_out(const Tensor& x, int64_t num_samples, const Tensor& thresholds,
                       double spread, double grid, double refine, const OptionalTensor& mean,
                       const OptionalTensor& std, RC_STREAM_PARAMETERS, bool channels_last,
                       Tensor out) {
  noise_into(lattice_args(kDistribution, x, num_samples, thresholds, spread, grid, refine, mean,
                          std, RC_STREAM_ARGUMENTS),
             x, channels_last, out);
}

void lattice_check_cpu(const LatticeCheckArgs& args, int64_t units) {
  run_units(RC_PICK(lattice_check), args, units, units << 20);
}

// [2] int64: of the values of `units` from the first on, those left to the thresholds and those
// decided wrongly.
template <Domain kDomain>
Tensor lattice_check(const Tensor& thresholds, double spread, int64_t first, int64_t units) {
  const Lattice lattice = lattice_of(thresholds, spread);
  check(first >= 0 && units >= 1 && first + units <= kLatticeCheckUnits, "first: got ", first,
        " and units: ", units, ", want some of ", kLatticeCheckUnits);
  Tensor counts = torch::stable::new_zeros(thresholds, {2}, ScalarType::Long);
  auto* data = counts.mutable_data_ptr<int64_t>();
  lattice_check_cpu({kDomain, lattice, first, data, data + 1}, units);
  return counts;
}

}  // namespace

#define RC_LATTICE_SCHEMA                                                                     \
  "Tensor x, SymInt num_samples, Tensor thresholds, float spread, float grid, float refine, " \
  "Tensor? mean, Tensor? std, " RC_STREAM_SCHEMA ", "
#define RC_DEFINE_LATTICE(name)                             \
  m.def("lattice_" name "_noise(" RC_LATTICE_SCHEMA         \
        "ScalarType dtype, bool channels_last) -> Tensor"); \
  m.def("lattice_" name "_noise_out(" RC_LATTICE_SCHEMA     \
        "bool channels_last, Tensor(a!) out) -> ()");       \
  m.def("lattice_" name "_check(Tensor thresholds, float spread, int first, int units) -> Tensor")

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  RC_DEFINE_LATTICE("gaussian");
  RC_DEFINE_LATTICE("uniform");
  RC_DEFINE_LATTICE("laplace");
}

#define RC_IMPLEMENT_LATTICE(name, of)                                           \
  m.impl("lattice_" name "_noise", TORCH_BOX(&lattice_noise<Distribution::of>)); \
  m.impl("lattice_" name "_noise_out", TORCH_BOX(&lattice_noise_out<Distribution::of>))

RC_LIBRARY_IMPL(m) {
  RC_IMPLEMENT_LATTICE("gaussian", kLatticeGaussian);
  RC_IMPLEMENT_LATTICE("uniform", kLatticeUniform);
  RC_IMPLEMENT_LATTICE("laplace", kLatticeLaplace);
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("lattice_gaussian_check", TORCH_BOX(&lattice_check<Domain::kLatticeGaussian>));
  m.impl("lattice_uniform_check", TORCH_BOX(&lattice_check<Domain::kLatticeUniform>));
  m.impl("lattice_laplace_check", TORCH_BOX(&lattice_check<Domain::kLatticeLaplace>));
}

}  // namespace robustcore::smoothing
