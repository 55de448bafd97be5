// CPU only: elsewhere robustcore/ops calls torch's own.
#include "density/product.h"

#include "common/cpu.h"
#include "common/tensor.h"

namespace robustcore::density {
namespace {

void check_matrix(const char* name, const Tensor& t, int64_t rows, int64_t columns) {
  check(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns &&
            t.scalar_type() == ScalarType::Float && !t.is_cuda(),
        name, ": got ", name_of(t.scalar_type()), " of shape ", shape_of(t),
        t.is_cuda() ? " on a GPU" : "", ", want float32 of shape [", rows, ", ", columns,
        "] on the CPU");
}

void product_(Tensor out,       // [M, N]
              const Tensor& a,  // [M, K]
              const Tensor& b,  // [K, N]
              bool add) {
  check(out.dim() == 2 && a.dim() == 2, "out, a: got shapes ", shape_of(out), " and ", shape_of(a),
        ", want matrices");
  check_matrix("out", out, out.size(0), out.size(1));
  check_matrix("a", a, out.size(0), a.size(1));
  check_matrix("b", b, a.size(1), out.size(1));
  check(out.stride(1) == 1 || out.size(1) == 1, "out: want the elements of a row side by side");
  const auto pack = RC_PICK_WIDE(pack_panels);
  check(pack != nullptr, "product_: this processor has no kernel for it");
  if (out.numel() == 0) return;
  ProductArgs args{a.size(0),
                   out.size(1),
                   a.size(1),
                   a.const_data_ptr<float>(),
                   a.stride(0),
                   a.stride(1),
                   b.const_data_ptr<float>(),
                   b.stride(0),
                   b.stride(1),
                   out.mutable_data_ptr<float>(),
                   out.stride(0),
                   add,
                   nullptr};
  const Scratch packed(args.panels() * args.steps * ProductArgs::kPanel);
  args.packed = packed.data();
  run_units(pack, args, args.panels(), args.steps * args.columns);
  const int64_t of_unit = ProductArgs::kRows * args.columns * args.steps;
  run_with_scratch(RC_PICK_WIDE(multiply_packed), args, args.units(), ProductArgs::scratch(),
                   of_unit / 16 + 1);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("product_(Tensor(a!) out, Tensor a, Tensor b, bool add) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("product_", TORCH_BOX(&product_));
}

}  // namespace robustcore::density
