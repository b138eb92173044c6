#include "runtime.hpp"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace wagma {
namespace WAGMA_RUNTIME {

#if defined(__CUDACC__)
// The driver's answer, which is asked for by way of the runtime: nothing here is linked with the driver's library, which may not be there.
bool is_used(int index) noexcept {
  using State = CUresult (*)(CUdevice, unsigned*, int*);
  static const State state = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    const cudaError_t code = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found, 12000, cudaEnableDefault, &status);
#else
    const cudaError_t code = cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &found, cudaEnableDefault, &status);
#endif
    return succeeds(code) && status == cudaDriverEntryPointSuccess ? reinterpret_cast<State>(found) : nullptr;
  }();
  unsigned flags = 0;
  int active = 0;
  // The runtime's number of a device is the driver's. Where nobody answers, the application's choice counts more than memory.
  return state == nullptr || state(index, &flags, &active) != CUDA_SUCCESS || active != 0;
}
#else
bool is_used(int) noexcept { return true; }  // nothing is created there
#endif

std::string device_label(int index, const std::string& name) {
  const std::string plain = std::string(kKind) + ":" + std::to_string(index);
  return name == kKind ? plain : plain + " (" + name + ")";
}

void refuse(cudaError_t code, const std::string& device, const char* call, const std::string& what) {
  cudaGetLastError();
  const std::string message = "device " + device + ": " + call + (what.empty() ? "" : " of " + what) + ": " + cudaGetErrorString(code) + " (" +
                              cudaGetErrorName(code) + ", " + std::to_string(static_cast<int>(code)) + ")";
  if (code == cudaErrorMemoryAllocation) throw OutOfDeviceMemory(message);
  throw DeviceError(message);
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
