#include <cstring>

#include "attacks/apgd.h"

namespace robustcore::attacks {

void RC_VARIANT(apgd_update)(const ApgdArgs& args, int64_t begin, int64_t end) {
  const int64_t bytes = args.elements * args.element_size;
  const auto copy = [&](void* to, const void* from, int64_t at) {
    std::memcpy(static_cast<char*>(to) + at * bytes, static_cast<const char*>(from) + at * bytes,
                bytes);
  };
  dispatch_arithmetic(args.is_double ? DType::kFloat64 : DType::kFloat32, [&](auto tag) {
    for (int64_t at = begin; at < end; ++at) {
      const ApgdRow<decltype(tag)> row(args, at);
      row.store(args, at);
      if (row.higher) {
        copy(args.best, args.x, at), copy(args.best_grad, args.grad, at);
      } else if (row.back) {
        copy(args.x, args.best, at), copy(args.grad, args.best_grad, at);
      }
    }
  });
}

}  // namespace robustcore::attacks
