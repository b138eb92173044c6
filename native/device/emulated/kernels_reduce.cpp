// The kernels of kernel_reduce.hpp. One that is missing is found by the linker.
#include "kernels.hpp"

namespace wagma::emulated {

#define WAGMA_COMPILE_REDUCE(T)          \
  WAGMA_COMPILE(Reduce<T, Few<T, 1>>);   \
  WAGMA_COMPILE(Reduce<T, Few<T, 2>>);   \
  WAGMA_COMPILE(Reduce<T, Few<T, 3>>);   \
  WAGMA_COMPILE(Reduce<T, Few<T, 4>>);   \
  WAGMA_COMPILE(Reduce<T, Few<T, 8>>);   \
  WAGMA_COMPILE(Reduce<T, Many<T>>)

WAGMA_COMPILE_REDUCE(Float16);
WAGMA_COMPILE_REDUCE(Bfloat16);
WAGMA_COMPILE_REDUCE(Float32);
WAGMA_COMPILE_REDUCE(Float64);

}  // namespace wagma::emulated
