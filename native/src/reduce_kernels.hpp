// The loops behind wagma/reduce.hpp, compiled once for every x86-64 processor and once for those with AVX2. All give equal bits.
#pragma once

#include <cstddef>

#include "wagma/reduce.hpp"

namespace wagma {

// Where sums go: as they are (accumulators) to `raw`, divided by `divisor` and rounded to items to `divided`.
struct Plan {
  void* const* raw;
  int raws;
  void* const* divided;
  int divideds;
  int divisor;
};

// Indexed by DType. n >= 1, no source is null; of merge's `total` and `own` one may be. None ends with a fence.
struct Kernels {
  const char* name;
  void (*reduce[4])(const void* const* sources, int n, const Plan& plan, std::size_t count, Stores stores);
  void (*merge[4])(void* destination, const void* own, const void* total, int divisor, std::size_t count, Stores stores);
  void (*stream)(void* destination, const void* source, std::size_t bytes);
};

constexpr int kMostSources = 8 * ((1 << 16) - 1);

extern const Kernels kBaselineKernels;
const Kernels* avx2_kernels();  // nullptr where processor or compiler has none

// The fastest that this processor runs.
const Kernels& kernels();
// For tests and measurements: every later call uses these. Not while another thread reduces.
void use_kernels(const Kernels& kernels);

}  // namespace wagma
