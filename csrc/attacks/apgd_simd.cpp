#include <cstring>

#include "attacks/apgd.h"
#include "attacks/step_rows_simd.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T, Norm kNorm>
void apgd_rows(const ApgdArgs& args, T* scratch, int64_t begin, int64_t end) {
  const int64_t bytes = args.watch.elements * args.watch.element_size;
  const auto copy = [&](void* to, const void* from, int64_t at) {
    std::memcpy(static_cast<char*>(to) + at * bytes, static_cast<const char*>(from) + at * bytes,
                bytes);
  };
  for (int64_t at = begin; at < end; ++at) {
    StepRow<T> row(args.step, at, scratch);
    const WatchedRow<StepRow<T>> watched(args.watch, at, row);
    watched.store(args.watch, at);
    const ApgdRow<T> apgd(args, at, watched);
    apgd.store(args, at);
    if (watched.higher) {
      copy(args.watch.best, args.watch.x, at);
      copy(args.watch.best_grad, args.watch.grad.data, at);
    }
    if (apgd.back) {
      copy(args.x, args.watch.best, at);
      row.start_from(args.watch.best, args.watch.best_grad);
    }
    step_row<kNorm>(args.step, apgd.numbers(args), row);
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(apgd_step)(const ApgdArgs& args, float* scratch, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.step.x.dtype, [&](auto tag) {
    auto* const own = reinterpret_cast<decltype(tag)*>(scratch);
    args.step.norm == Norm::kLinf ? apgd_rows<decltype(tag), Norm::kLinf>(args, own, begin, end)
                                  : apgd_rows<decltype(tag), Norm::kL2>(args, own, begin, end);
  });
}

}  // namespace robustcore::attacks
