// The pybind11 module `robustcore._C`. Importing it registers the ops with torch; what it exports
// is build information, constants and hooks for tests. No tensor passes through pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "common/isa.h"
#include "common/philox.h"
#include "common/winograd_plan.h"
#include "lipschitz/pairs.h"
#include "lipschitz/series.h"
#include "lipschitz/series_block.h"
#include "masking/fill.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = RC_VERSION;
  info["torch_target"] = RC_TORCH_TARGET;
#if defined(RC_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_archs"] = RC_CUDA_ARCHS;
  info["simd"] = robustcore::active_isa_name();
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  return info;
}

std::array<uint32_t, 4> philox4x32(const std::array<uint32_t, 4>& counter, uint64_t seed) {
  const uint32_t in[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t out[4];
  robustcore::philox4x32(in, seed, out);
  return {out[0], out[1], out[2], out[3]};
}

bool series_block_fits([[maybe_unused]] const robustcore::lipschitz::BlockShape& shape,
                       [[maybe_unused]] int device) {
#if defined(RC_WITH_CUDA)
  return robustcore::lipschitz::series_block_fits_cuda(shape, device);
#else
  return false;
#endif
}

void export_constants(py::module_& m) {
  using namespace robustcore;
  m.attr("MAX_FILL_ITERS") = masking::kMaxIters;
  m.attr("MAX_FILL_ITERS_TRANSPOSED") = masking::kMaxItersTransposed;
  m.attr("MAX_SERIES_DEGREE") = lipschitz::SeriesArgs::kMaxDegree;
  m.attr("MAX_SERIES_BLOCK_DEGREE") = lipschitz::BlockShape::kMaxDegree;
  m.attr("HOUSEHOLDER") = static_cast<int>(lipschitz::Map::kHouseholder);
  m.attr("HOUSEHOLDER2") = static_cast<int>(lipschitz::Map::kHouseholder2);
  m.attr("PROJECTION") = static_cast<int>(lipschitz::Map::kProjection);
  // By these numbers: the angles that a map gives gradients for.
  m.attr("PAIR_MAP_ANGLES") =
      py::make_tuple(lipschitz::Householder::kAngles, lipschitz::Householder2::kAngles,
                     lipschitz::Projection::kAngles);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of robustcore.";
  robustcore::active_isa();  // the import fails, not the first op, where it cannot be had
  m.def("build_info", &build_info);
  m.def("select_simd", &robustcore::select_isa, py::arg("name"),
        "For tests: run the CPU kernels of another instruction set.");
  m.def("winograd_block", &robustcore::winograd_block,
        "Channels to a multiple of which our own convolutions pad; 0 where there are none.");
  m.def(
      "series_block_fits",
      [](int32_t channels, int32_t height, int32_t width, int32_t degree, int32_t bytes,
         int device) {
        return series_block_fits({channels, height, width, degree, bytes}, device);
      },
      py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("degree"), py::arg("bytes"),
      py::arg("device"), "Whether a GPU of this build keeps such maps for a whole series.");
  export_constants(m);
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("seed"),
        "For tests: one Philox4x32-10 block.");
}
