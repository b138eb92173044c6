// For kernels_*.cpp, which compile the kernels for the emulated device: in two parts, so that two cores have work.
#pragma once

#include "../kernels.hpp"
#include "run_block.hpp"

namespace wagma::emulated {

template <class Kernel>
void run_block(const Kernel& kernel, const Block& block) {
  kernel(block);
}

#define WAGMA_COMPILE(...) template void run_block(const __VA_ARGS__&, const Block&)

}  // namespace wagma::emulated
