// The kernels of kernel_parts.hpp, and what has no file of its own. One that is missing is found by the linker.
#include "kernels.hpp"

namespace wagma::emulated {

#define WAGMA_COMPILE_PARTS(T, alike)          \
  WAGMA_COMPILE(OverParts<Publish<T>, alike>); \
  WAGMA_COMPILE(OverParts<Take<T>, alike>);    \
  WAGMA_COMPILE(OverParts<Add<T>, alike>);     \
  WAGMA_COMPILE(OverParts<Merge<T>, alike>)

WAGMA_COMPILE_PARTS(Float16, true);
WAGMA_COMPILE_PARTS(Bfloat16, true);
WAGMA_COMPILE_PARTS(Float32, true);
WAGMA_COMPILE_PARTS(Float64, true);
WAGMA_COMPILE_PARTS(Float32, false);  // only these two hold the values of other dtypes
WAGMA_COMPILE_PARTS(Float64, false);

WAGMA_COMPILE(MergeInto<Float16>);
WAGMA_COMPILE(MergeInto<Bfloat16>);
WAGMA_COMPILE(MergeInto<Float32>);
WAGMA_COMPILE(MergeInto<Float64>);
WAGMA_COMPILE(WriteStamp);

}  // namespace wagma::emulated
