// How the module's part for CUDA was built. tools/cuda_build.py compiles cuda_build.cpp: with nvcc, in one unit with native/device, or alone.
#pragma once

namespace wagma::cuda {

extern const char* const kWhyNot;  // nullptr: native/device is there
extern const char* const kCodes;   // "sm_80 compute_80": machine code, PTX; separated by spaces

}  // namespace wagma::cuda
