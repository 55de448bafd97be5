#include "common/cuda.h"
#include "common/math.h"
#include "lipschitz/series.h"

namespace robustcore::lipschitz {
namespace {

template <class E, int kWide>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ UpdateArgs args) {
  using T = Arithmetic<E>;
  using P = Pack<E, kWide>;
  const T alpha = static_cast<T>(args.alpha), beta = static_cast<T>(args.beta);
  const T gamma = static_cast<T>(args.gamma), delta = static_cast<T>(args.delta);
  const T total_scale = static_cast<T>(args.total_scale);
  const auto read = [](const void* data, int64_t i) {
    return data ? static_cast<const P*>(data)[i] : P{};
  };
  for_items(args.count / kWide, [&](int64_t i) {
    const P z = read(args.z, i), a = read(args.a, i), b = read(args.b, i);
    P total = read(args.total, i), out;
    RC_UNROLL
    for (int j = 0; j < kWide; ++j) {
      T v = alpha * convert<T>(z.v[j]);
      if (args.a) v = fused_multiply_add(beta, convert<T>(a.v[j]), v);
      if (args.b) v = fused_multiply_add(gamma, convert<T>(b.v[j]), v);
      out.v[j] = convert<E>(v);
      total.v[j] = convert<E>(fused_multiply_add(delta, v, total_scale * convert<T>(total.v[j])));
    }
    static_cast<P*>(args.out)[i] = out;
    if (args.total) static_cast<P*>(args.total_out)[i] = total;
  });
}

template <class E, int kWide>
void launch_update(const UpdateArgs& args, void* stream) {
  launch_items(update_kernel<E, kWide>, args.count / kWide, stream, args);
}

}  // namespace

void update_cuda(const UpdateArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    constexpr int kWide = 16 / sizeof(E);
    bool wide = args.count % kWide == 0;
    for (const void* p : {args.z, args.a, args.b, args.total, static_cast<const void*>(args.out),
                          static_cast<const void*>(args.total_out)}) {
      wide = wide && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    }
    if (wide) return launch_update<E, kWide>(args, stream);
    launch_update<E, 1>(args, stream);
  });
}

}  // namespace robustcore::lipschitz
