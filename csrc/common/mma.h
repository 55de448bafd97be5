// One warp's matrix products on the tensor cores (sm_80 and newer): C += A B with A of 16 x k, B of
// k x 8 and C of 16 x 8, where k is 16 in bfloat16 and float16, 8 in TF32: 32 bytes of a row.
//
// A fragment is a lane's registers of a matrix. With g = lane / 4 and t = lane % 4, as the PTX ISA
// has it for mma.m16n8k16 (two elements a register, the first in the low half) and mma.m16n8k8:
//
//   A  r[0] (g, t)  r[1] (g + 8, t)  r[2] (g, t + 4)  r[3] (g + 8, t + 4)      row, register of it
//   B  r[0] (t, g)  r[1] (t + 4, g)                                            register, column
//   C  v[0] (g, 2 t)  v[1] (g, 2 t + 1)  v[2] (g + 8, 2 t)  v[3] (g + 8, 2 t + 1)
//
// where "register t of a row" is its elements 2 t and 2 t + 1, or element t in TF32.
//
// The order in which the hardware adds the products of one mma, and where it cuts bits off, is its
// own: results are the same in every run on one device, but promised to a bound only. Every lane of
// the warp calls what stands here, together.
#pragma once

#include <algorithm>

#include "common/cuda.h"
#include "common/dtype.h"

namespace robustcore::mma {

constexpr int kRows = 16, kColumns = 8, kLanes = 32;
constexpr int kDepthBytes = 32;  // of a row of A, or a column of B, that one product takes

// A number of TF32: float32's exponent, 10 bits of its mantissa; the others are zero.
struct Tf32 {
  uint32_t bits;
};

// Elements of a row that one product takes.
template <class E>
constexpr int kDepth = kDepthBytes / sizeof(E);

template <class E>
struct FragmentA {
  uint32_t r[4];
};
template <class E>
struct FragmentB {
  uint32_t r[2];
};
struct FragmentC {
  float v[4];
};

// Where v[i] of a lane's C is.
RC_HOST_DEVICE int row_of(int lane, int i) {
  return lane / 4 + (i / 2) * 8;
}
RC_HOST_DEVICE int column_of(int lane, int i) {
  return lane % 4 * 2 + i % 2;
}

// ---- What the instructions are -------------------------------------------------------------------

#if defined(RC_CUDA_SHIM)

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x % kLanes);
}

// Element k of row i of A, or of column i of B.
template <class E>
float element_of(const uint32_t* low_first, int k) {
  constexpr int kIn = 4 / sizeof(E);  // elements of a register
  const uint32_t bits = low_first[k / kIn] >> (k % kIn * 16);
  if constexpr (std::is_same_v<E, Tf32>) {
    return bit_cast<float>(bits & ~0x1FFFu);  // the hardware reads no more
  } else {
    return to_float(E{static_cast<uint16_t>(bits)});
  }
}

// Of kN neighbouring B: c[n] += a b[n].
template <class E, int kN>
void multiply_add(FragmentC (&c)[kN], const FragmentA<E>& a, const FragmentB<E> (&b)[kN]) {
  struct Operands {
    FragmentA<E> a;
    FragmentB<E> b[kN];
  } mine{a, {}};
  std::copy(b, b + kN, mine.b);
  const Operands* all = cuda_shim::exchange(mine);
  for (int n = 0; n < kN; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int row = row_of(lane(), i), column = column_of(lane(), i);
      uint32_t a_row[8], b_column[8];
      for (int t = 0; t < 8; ++t) {
        a_row[t] = all[row % 8 * 4 + t % 4].a.r[row / 8 + t / 4 * 2];
        b_column[t] = all[column * 4 + t % 4].b[n].r[t / 4];
      }
      double sum = c[n].v[i];
      for (int k = 0; k < kDepth<E>; ++k) {
        sum += static_cast<double>(element_of<E>(a_row, k)) * element_of<E>(b_column, k);
      }
      c[n].v[i] = static_cast<float>(sum);
    }
  }
}

template <class E>
void multiply_add(FragmentC& c, const FragmentA<E>& a, const FragmentB<E>& b) {
  FragmentC cs[1] = {c};
  const FragmentB<E> bs[1] = {b};
  multiply_add(cs, a, bs);
  c = cs[0];
}

// Four 8 x 8 matrices of 16 bits: lane 8 m + i hands in row i of matrix m, and gets of each matrix
// register t of row g.
template <class Registers>
void load_matrices(Registers& to, const void* row) {
  const void* const* rows = cuda_shim::exchange(row);
  for (int m = 0; m < 4; ++m) {
    const char* from = static_cast<const char*>(rows[m * 8 + lane() / 4]);
    std::memcpy(&to.r[m], from + lane() % 4 * 4, 4);
  }
}

// The same transposed: of each matrix elements 2 t and 2 t + 1 of column g.
template <class Registers>
void load_matrices_transposed(Registers& to, const void* row) {
  const void* const* rows = cuda_shim::exchange(row);
  for (int m = 0; m < 4; ++m) {
    uint16_t both[2];
    for (int h = 0; h < 2; ++h) {
      const char* from = static_cast<const char*>(rows[m * 8 + lane() % 4 * 2 + h]);
      std::memcpy(&both[h], from + lane() / 4 * 2, 2);
    }
    std::memcpy(&to.r[m], both, 4);
  }
}

#else

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x) % kLanes;
}

template <class E>
__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA<E>& a,
                                             const FragmentB<E>& b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define RC_MMA(shape, type)                                                           \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])               \
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]))
  if constexpr (std::is_same_v<E, Tf32>) {
    RC_MMA("m16n8k8", "tf32");
  } else if constexpr (std::is_same_v<E, BFloat16>) {
    RC_MMA("m16n8k16", "bf16");
  } else {
    RC_MMA("m16n8k16", "f16");
  }
#undef RC_MMA
#endif
}

// Of kN neighbouring B: c[n] += a b[n].
template <class E, int kN>
__device__ __forceinline__ void multiply_add(FragmentC (&c)[kN], const FragmentA<E>& a,
                                             const FragmentB<E> (&b)[kN]) {
  RC_UNROLL
  for (int n = 0; n < kN; ++n) multiply_add(c[n], a, b[n]);
}

// Four 8 x 8 matrices of 16 bits in shared memory: lane 8 m + i hands in row i of matrix m, 16
// aligned bytes, and gets of each matrix register t of row g; transposed, elements 2 t and 2 t + 1
// of column g.
#define RC_LOAD_MATRICES(name, modifier)                                                        \
  template <class Registers>                                                                    \
  __device__ __forceinline__ void name(Registers& to, const void* row) {                        \
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));                  \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(to.r[0]), "=r"(to.r[1]), "=r"(to.r[2]), "=r"(to.r[3])                   \
                 : "r"(address)                                                                 \
                 : "memory");                                                                   \
  }
RC_LOAD_MATRICES(load_matrices, "")
RC_LOAD_MATRICES(load_matrices_transposed, ".trans")
#undef RC_LOAD_MATRICES

#endif

// ---- Fragments out of shared memory --------------------------------------------------------------

// A lane's row of 16 x 32 bytes for load_a: its lane hands in row_for_a(lane), from byte
// byte_for_a(lane) on.
RC_HOST_DEVICE int row_for_a(int lane) {
  return lane % 16;
}
RC_HOST_DEVICE int byte_for_a(int lane) {
  return lane / 16 * 16;
}
template <class E>
__device__ __forceinline__ void load_a(FragmentA<E>& a, const void* mine) {
  load_matrices(a, mine);
}

// Two neighbouring B, columns 0 to 7 and 8 to 15, out of memory in which a column's elements lie
// side by side: a lane hands in column_for_b(lane), from byte byte_for_b(lane) on.
template <class E>
struct PairB {
  FragmentB<E> b[2];
};
RC_HOST_DEVICE int column_for_b(int lane) {
  return lane / 16 * 8 + lane % 8;
}
RC_HOST_DEVICE int byte_for_b(int lane) {
  return lane / 8 % 2 * 16;
}
template <class E>
__device__ __forceinline__ void load_b(PairB<E>& to, const void* mine) {
  FragmentA<E> four;
  load_matrices(four, mine);
  to = {{{four.r[0], four.r[1]}, {four.r[2], four.r[3]}}};
}

// The same out of memory in which a row's elements lie side by side (16 bits an element): a lane
// hands in row_for_b(lane), from column first_column_for_b(lane) on.
RC_HOST_DEVICE int row_for_b(int lane) {
  return lane % 16;
}
RC_HOST_DEVICE int first_column_for_b(int lane) {
  return lane / 16 * 8;
}
template <class E>
__device__ __forceinline__ void load_b_transposed(PairB<E>& to, const void* mine) {
  static_assert(sizeof(E) == 2);
  FragmentA<E> four;
  load_matrices_transposed(four, mine);
  to = {{{four.r[0], four.r[1]}, {four.r[2], four.r[3]}}};
}

// ---- float32 in two numbers of TF32 --------------------------------------------------------------

// x = big + small up to 2^-23 |x|: big is x to 11 bits, small the rest to 11 bits, both rounded to
// nearest. Finite x of at least 2^128 - 2^116, and infinities, come out as NaN in products.
struct SplitNumber {
  Tf32 big, small;
};

RC_HOST_DEVICE Tf32 to_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return {bits & ~0x1FFFu};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {nan ? 0x7FFFE000u : (bits + 0x1000u) & ~0x1FFFu};  // ties away from zero
#endif
}

RC_HOST_DEVICE SplitNumber split(float x) {
  const Tf32 big = to_tf32(x);
  return {big, to_tf32(x - bit_cast<float>(big.bits))};
}

template <class Fragment>
struct Split {
  Fragment big, small;
};

// Of registers that hold float32: FragmentA<float> as load_a gives it, or FragmentB<float>.
template <template <class> class Fragment>
__device__ __forceinline__ Split<Fragment<Tf32>> split(const Fragment<float>& x) {
  Split<Fragment<Tf32>> result;
  RC_UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(x.r) / 4); ++i) {
    const SplitNumber parts = split(bit_cast<float>(x.r[i]));
    result.big.r[i] = parts.big.bits, result.small.r[i] = parts.small.bits;
  }
  return result;
}

// Three of the four products, the small ones first; small by small is left out. What that and the
// two roundings leave of a product is at most 2^-21 |a b|, where float32's own rounding is
// 2^-24 |a b| a product and as much of the sum a step: of sums of some tens of products it decides
// nothing. Three parts a number and six products would gain bits that the accumulator does not
// have.
__device__ __forceinline__ void multiply_add(FragmentC& c, const Split<FragmentA<Tf32>>& a,
                                             const Split<FragmentB<Tf32>>& b) {
  multiply_add(c, a.small, b.big);
  multiply_add(c, a.big, b.small);
  multiply_add(c, a.big, b.big);
}

// The same of kN neighbouring B. A sum takes its next product kN products later: the hardware waits
// for none.
template <int kN>
__device__ __forceinline__ void multiply_add(FragmentC (&c)[kN], const Split<FragmentA<Tf32>>& a,
                                             const Split<FragmentB<Tf32>> (&b)[kN]) {
  FragmentB<Tf32> big[kN], small[kN];
  RC_UNROLL
  for (int n = 0; n < kN; ++n) big[n] = b[n].big, small[n] = b[n].small;
  multiply_add(c, a.small, big);
  multiply_add(c, a.big, small);
  multiply_add(c, a.big, big);
}

}  // namespace robustcore::mma
