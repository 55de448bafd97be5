#include "attacks/apgd.h"
#include "common/cuda.h"

namespace robustcore::attacks {
namespace {

// E: any type of the elements' size, which are only copied.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) apgd_kernel(const __grid_constant__ ApgdArgs args) {
  for_units(args.rows, [&](int64_t at) {
    const ApgdRow<T> row(args, at);
    __syncthreads();  // all have read the state
    if (threadIdx.x == 0) row.store(args, at);
    if (!row.higher && !row.back) return;
    const int64_t first = at * args.elements;
    for (int64_t k = first + threadIdx.x; k < first + args.elements; k += blockDim.x) {
      if (row.higher) {
        static_cast<E*>(args.best)[k] = static_cast<const E*>(args.x)[k];
        static_cast<E*>(args.best_grad)[k] = static_cast<const E*>(args.grad)[k];
      } else {
        static_cast<E*>(args.x)[k] = static_cast<const E*>(args.best)[k];
        static_cast<E*>(args.grad)[k] = static_cast<const E*>(args.best_grad)[k];
      }
    }
  });
}

}  // namespace

void apgd_update_cuda(const ApgdArgs& args, void* stream) {
  const auto kernel = args.is_double           ? apgd_kernel<double, uint64_t>
                      : args.element_size == 4 ? apgd_kernel<float, uint32_t>
                                               : apgd_kernel<float, uint16_t>;
  launch(kernel, args.rows, kThreads, stream, args);
}

}  // namespace robustcore::attacks
