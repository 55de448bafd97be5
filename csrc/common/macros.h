// What every source, host or device, agrees on before it says anything else.
#pragma once

// Code that runs on both sides carries RC_HOST_DEVICE. Forced inlining keeps a SIMD variant's
// helpers inside that variant; see RC_ISA below.
#if defined(__CUDACC__)
#define RC_HOST_DEVICE __host__ __device__ __forceinline__
#define RC_COLD RC_HOST_DEVICE  // a call costs a GPU's thread more than the code
#define RC_UNROLL _Pragma("unroll")
#define RC_ROLL _Pragma("unroll 1")
#else
#define RC_HOST_DEVICE inline __attribute__((always_inline))
#define RC_COLD inline __attribute__((noinline, cold))  // rare code, kept out of a loop
#define RC_UNROLL
#define RC_ROLL
#endif

// The instruction set a translation unit is compiled for: baseline, avx2 or avx512. It names an
// inline namespace around everything that is compiled more than once, because the linker keeps one
// copy of an inline function: without it, an AVX-512 copy could end up on a machine without
// AVX-512.
#if !defined(RC_ISA)
#define RC_ISA baseline
#endif

#define RC_CONCAT_(a, b) a##b
#define RC_CONCAT(a, b) RC_CONCAT_(a, b)
