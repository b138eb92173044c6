// The runtime that native/device is compiled for, and what all of it does around calls of it: errors, the current device, launches.
#pragma once

#include <optional>
#include <string>

#include "block.hpp"
#include "wagma/device.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulated/run_block.hpp"
#include "emulated/runtime.hpp"
#endif

namespace wagma {
namespace WAGMA_RUNTIME {

#if defined(__CUDACC__)
constexpr const char* kKind = "cuda";
#else
constexpr const char* kKind = "emulated";
#endif

// How messages name a device: "cuda:0 (NVIDIA H200)".
std::string device_label(int index, const std::string& name);

// Throws OutOfDeviceMemory or DeviceError, one line: device, call, what was asked for, what the runtime says. Takes the error away from
// cudaGetLastError, where the application's next check would find it and blame itself.
[[noreturn]] void refuse(cudaError_t code, const std::string& device, const char* call, const std::string& what);

inline void check(cudaError_t code, const std::string& device, const char* call) {
  if (code != cudaSuccess) refuse(code, device, call, "");
}
// `what`: "400 bytes"; a function, called if it is needed.
template <class What>
void check(cudaError_t code, const std::string& device, const char* call, What what) {
  if (code != cudaSuccess) refuse(code, device, call, what());
}

// For what cannot be helped, at the ends of things.
inline bool succeeds(cudaError_t code) noexcept {
  if (code == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

// While another thread of the application records a CUDA graph, calls that ask for an event or allocate are refused, and end the recording,
// unless the calling thread says that it knows what it does: what is done here has nothing to do with what is recorded.
class Unrecorded {
 public:
  Unrecorded() { known_ = succeeds(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~Unrecorded() {
    if (known_) succeeds(cudaThreadExchangeStreamCaptureMode(&mode_));
  }
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the one that was
  bool known_ = false;
};

// Whether anybody in this process works with the device: to make one current that nobody does creates its context there, hundreds of
// megabytes that would stay for good.
bool is_used(int index) noexcept;

// The calling thread's current device, for as long as this lives. Which one that is belongs to the application (torch allocates there),
// so it is put back, unless it is the one that a thread begins with and nothing was ever done there: of the ranks of a machine with many
// GPUs each would otherwise have a context on the first, from its progress thread. (torch does the same.)
class Current {
 public:
  Current(int index, const std::string& device) : index_(index) {
    check(cudaGetDevice(&before_), device, "cudaGetDevice");
    if (before_ != index_) check(cudaSetDevice(index_), device, "cudaSetDevice");
    unrecorded_.emplace();  // only now: on a device that nobody uses it, too, might create a context
  }
  ~Current() {
    unrecorded_.reset();
    if (before_ != index_ && is_used(before_)) succeeds(cudaSetDevice(before_));
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const int index_;
  int before_ = 0;
  std::optional<Unrecorded> unrecorded_;
};

// As Current, for ends, where nothing may be thrown: on a device that is broken `function` runs, too, and lets go of what the host has of it.
template <class Function>
bool with_device(int index, Function function) noexcept {
  int before = 0;
  const bool known = succeeds(cudaGetDevice(&before));
  succeeds(cudaSetDevice(index));
  bool done = false;
  {
    const Unrecorded unrecorded;
    done = function();
  }
  if (known && before != index && is_used(before)) succeeds(cudaSetDevice(before));
  return done;
}

#if defined(__CUDACC__)
template <class Kernel>
__global__ void __launch_bounds__(kThreads, 2) run_kernel(const __grid_constant__ Kernel kernel) {
  kernel(Block{});
}

// cudaLaunchKernel and not <<<>>>: it returns its own error, where cudaGetLastError would also give what the application has left there.
template <class Kernel>
cudaError_t launch(const Kernel& kernel, unsigned blocks, cudaStream_t stream) {
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&run_kernel<Kernel>), dim3(blocks), dim3(kThreads), arguments, 0, stream);
}

// Has the driver bring the kernel to the device now. Left to the first launch, that may wait for whatever runs on the device by then.
template <class Kernel>
cudaError_t load_kernel(const Kernel&) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&run_kernel<Kernel>));
}
#else
template <class Kernel>
cudaError_t load_kernel(const Kernel&) {
  return cudaSuccess;
}

template <class Kernel>
cudaError_t launch(const Kernel& kernel, unsigned blocks, cudaStream_t stream) {
  if (blocks == 0) return said(cudaErrorInvalidValue);  // as CUDA
  return enqueue(stream, [kernel, blocks] {
    for (unsigned number = 0; number < blocks; ++number) run_block(kernel, Block(number, blocks));
  });
}
#endif

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
