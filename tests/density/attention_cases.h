// Attention's cases of the comparison: odd sizes, several tiles, masks, nothing seen.
#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "density/attention.h"

namespace robustcore::density {

struct AttentionShape {
  int64_t batch, heads, rows, columns, dim, value_dim;
  bool causal, masked;
};

// One device's results, from different poison on the two.
template <class T>
struct AttentionResults {
  std::vector<T> out, lse, d_q, d_k, d_v, d_grad, stats;

  AttentionResults(const AttentionShape& s, T poison)
      : out(s.batch * s.heads * s.rows * s.value_dim, poison),
        lse(s.batch * s.heads * s.rows, poison),
        d_q(s.batch * s.heads * s.rows * s.dim, poison),
        d_k(s.batch * s.heads * s.columns * s.dim, T(0)),
        d_v(s.batch * s.heads * s.columns * s.value_dim, T(0)),
        d_grad(out),
        stats(lse.size() * kStats, poison) {}
  bool operator==(const AttentionResults& o) const {
    return out == o.out && lse == o.lse && d_q == o.d_q && d_k == o.d_k && d_v == o.d_v &&
           d_grad == o.d_grad;
  }
};

template <class T>
void attention_case(const AttentionShape& s) {
  const int64_t heads = s.batch * s.heads;
  const auto values = [](int64_t n, uint32_t seed) {
    std::vector<T> v = random_values<T>(n, seed);
    for (T& x : v) x *= T(0.25);
    return v;
  };
  const auto q = values(heads * s.rows * s.dim, 1), k = values(heads * s.columns * s.dim, 2);
  const auto v = values(heads * s.columns * s.value_dim, 3);
  const auto v_q = values(q.size(), 4), v_k = values(k.size(), 5), v_v = values(v.size(), 6);
  const auto grad = values(heads * s.rows * s.value_dim, 7);
  auto mask = values(s.batch * s.rows * s.columns, 8);
  for (size_t i = 0; i < mask.size(); i += 3) mask[i] = T(-INFINITY);
  for (int64_t j = 0; j < s.columns; ++j) mask[j] = T(-INFINITY);  // the first row sees nothing
  AttentionInputs in{s.batch,
                     s.heads,
                     s.rows,
                     s.columns,
                     s.dim,
                     s.value_dim,
                     q.data(),
                     k.data(),
                     v.data(),
                     s.masked ? mask.data() : nullptr,
                     {s.rows * s.columns, 0, s.columns, 1},
                     s.causal,
                     std::is_same_v<T, double>,
                     0.3};
  const std::string name = " dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
                           std::to_string(s.rows) + "x" + std::to_string(s.columns) + "x" +
                           std::to_string(s.dim) + (s.causal ? " causal" : "") +
                           (s.masked ? " masked" : "");
  AttentionResults<T> first[2]{{s, T(7)}, {s, T(9)}}, second[2]{{s, T(7)}, {s, T(9)}};
  std::vector<float> scratch(attention_scratch(in, 4, 5));
  for (int side = 0; side < 2; ++side) {
    AttentionResults<T>&r = first[side], &t = second[side];
    const AttentionArgs args{in, r.out.data(), r.lse.data()};
    side ? attention_cuda(args, nullptr)
         : attention_baseline(args, scratch.data(), 0, heads * ceil_div(s.rows, kTile));
    const AttentionBackwardArgs back{
        in,           grad.data(),  first[0].out.data(), first[0].lse.data(),
        r.d_q.data(), r.d_k.data(), r.d_v.data(),        r.stats.data()};
    side ? attention_backward_cuda(back, nullptr)
         : attention_backward_baseline(back, scratch.data(), 0, heads);
    const AttentionDoubleBackwardArgs twice{
        in,           grad.data(),  first[0].out.data(), first[0].lse.data(),
        v_q.data(),   v_k.data(),   v_v.data(),          t.d_grad.data(),
        t.d_q.data(), t.d_k.data(), t.d_v.data(),        t.stats.data()};
    side ? attention_double_backward_cuda(twice, nullptr)
         : attention_double_backward_baseline(twice, scratch.data(), 0, heads);
    if (side) first[1].d_grad = first[0].d_grad, t.out = second[0].out, t.lse = second[0].lse;
  }
  report("attention" + name, first[0] == first[1]);
  report("attention_double_backward" + name, second[0] == second[1]);
}

inline void attention_cases() {
  for (const AttentionShape& shape : {
           AttentionShape{1, 1, 1, 1, 1, 1, false, false},
           {2, 2, 5, 7, 3, 4, false, true},
           {1, 2, 40, 70, 33, 9, false, true},
           {1, 1, 70, 40, 8, 40, true, false},
           {1, 1, 40, 70, 8, 8, true, true},
       }) {
    attention_case<float>(shape);
    if (shape.rows < 50) attention_case<double>(shape);
  }
}

}  // namespace robustcore::density
