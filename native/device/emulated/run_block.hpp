// How the emulated device's streams, and tests, run a kernel of kernels.hpp.
#pragma once

#include "../block.hpp"

namespace wagma::emulated {

// One block of it. Defined in kernels_*.cpp alone, for each kernel that there is: they are most of what a compiler has to do here.
template <class Kernel>
void run_block(const Kernel& kernel, const Block& block);

}  // namespace wagma::emulated
