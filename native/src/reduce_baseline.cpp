#include <cstddef>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "reduce_kernels.hpp"

#define WAGMA_VECTOR_BYTES 16
#include "reduce_lines.hpp"
#include "reduce_loops.hpp"

namespace wagma {

const Kernels kBaselineKernels = WAGMA_KERNELS("baseline");

}  // namespace wagma
