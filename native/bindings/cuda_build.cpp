#include "cuda_build.hpp"

#include <string>

#include "device.hpp"

namespace wagma::cuda {

#if defined(WAGMA_CUDA_WHY_NOT)  // no device/*.cpp: what they define, without any device

const char* const kWhyNot = WAGMA_CUDA_WHY_NOT;
const char* const kCodes = "";

int device_count() noexcept { return 0; }

std::string why_no_device() { return std::string("wagma was built without CUDA: ") + kWhyNot; }

std::shared_ptr<Device> make_device(int index) { throw DeviceError("device cuda:" + std::to_string(index) + ": " + why_no_device()); }

#else

const char* const kWhyNot = nullptr;
const char* const kCodes = WAGMA_CUDA_CODES;

#endif

}  // namespace wagma::cuda
