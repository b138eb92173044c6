#include "reduce_kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

#include <cstddef>

// For the functions below only, and all of them have internal linkage: none can be called by accident on another processor.
#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#define WAGMA_VECTOR_BYTES 32
#define WAGMA_AVX2
#include "reduce_lines.hpp"
#include "reduce_loops.hpp"

namespace wagma {
namespace {
constexpr Kernels kAvx2Kernels = WAGMA_KERNELS("avx2");
}
}  // namespace wagma

#pragma GCC pop_options

const wagma::Kernels* wagma::avx2_kernels() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? &kAvx2Kernels : nullptr;
}

#else

const wagma::Kernels* wagma::avx2_kernels() { return nullptr; }

#endif
