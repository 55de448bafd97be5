#include "attacks/step_rows_simd.h"

namespace robustcore::attacks {

void RC_VARIANT(step)(const StepArgs& args, float* scratch, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_norm(args.norm, [&](auto norm) {
      for (int64_t at = begin; at < end; ++at) {
        StepRow<T> row(args, at, reinterpret_cast<T*>(scratch));
        step_row<norm()>(args, numbers_of<T>(args, at), row);
      }
    });
  });
}

}  // namespace robustcore::attacks
