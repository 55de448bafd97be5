#include "influence/projection.h"

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::influence {
namespace {

void project_cpu(const ProjectionArgs& args) {
  for_rounds(args, [](const ProjectionArgs& round) {
    run_with_scratch(RC_PICK(project), round, round.units(), kProjectScratch);
    if (round.parts) {
      run_units(RC_PICK(add_parts), round, round.tiles, round.units() * kTileOutputs);
    }
  });
}

void check_rows(int64_t rows, int64_t row_offset) {
  check(row_offset >= 0 && row_offset <= kMaxRows - rows, "row_offset: got ", row_offset, " for ",
        rows, " rows, want indices in [0, 2**62)");
}

// x [N, terms] times P, or its transpose, to [N, outputs].
Tensor project(const Tensor& x, int64_t outputs, int64_t seed, int64_t row_offset, bool normal,
               bool transposed) {
  ProjectionArgs args{};
  args.normal = normal, args.transposed = transposed;
  args.seed = static_cast<uint64_t>(seed);
  args.row_offset = row_offset;
  args.samples = x.size(0), args.terms = x.size(1), args.outputs = outputs;
  args.x = strided_view("x", x, x.sizes());
  const auto dtype = args.x.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  if (args.samples == 0 || args.terms == 0 || args.outputs == 0) {
    return torch::stable::new_zeros(x, {args.samples, outputs}, dtype);
  }
  Tensor out = empty_on(x, {args.samples, outputs}, {outputs, 1}, dtype);
  args.out = out.mutable_data_ptr();
  const int64_t parts = args.all_parts();
  Tensor memory = torch::stable::new_empty(x, {parts * kPartElements}, dtype);
  args.parts = parts > 0 ? memory.mutable_data_ptr() : nullptr;
  run(x, args, project_cpu, RC_CUDA(project_cuda));
  return out;
}

Tensor random_projection(const Tensor& x,  // [N, D]
                         int64_t k, int64_t seed, int64_t row_offset, bool normal) {
  check(x.dim() == 2, "x: got shape ", shape_of(x), ", want [N, D]");
  check(k >= 1 && k <= kMaxColumns, "k: got ", k, ", want an int in [1, 2**31)");
  check_rows(x.size(1), row_offset);
  return project(x, k, seed, row_offset, normal, false);
}

Tensor random_projection_transposed(const Tensor& y,  // [N, k]
                                    int64_t rows, int64_t seed, int64_t row_offset, bool normal) {
  check(y.dim() == 2, "y: got shape ", shape_of(y), ", want [N, k]");
  check(y.size(1) <= kMaxColumns, "y: got ", y.size(1), " columns, want fewer than 2**31");
  check(rows >= 0 && rows <= kMaxRows, "rows: got ", rows, ", want an int in [0, 2**62)");
  check_rows(rows, row_offset);
  return project(y, rows, seed, row_offset, normal, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "random_projection(Tensor x, SymInt k, SymInt seed, SymInt row_offset, bool normal) -> "
      "Tensor");
  m.def(
      "random_projection_transposed(Tensor y, SymInt rows, SymInt seed, SymInt row_offset, bool "
      "normal) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("random_projection", TORCH_BOX(&random_projection));
  m.impl("random_projection_transposed", TORCH_BOX(&random_projection_transposed));
}

}  // namespace robustcore::influence
