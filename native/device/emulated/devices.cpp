// Which emulated devices there are, and what they answer.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "runtime.hpp"
#include "settings.hpp"

namespace wagma::emulated {

namespace {

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;

// Relaxed: they say only that something is broken; what is read because of it is nothing.
std::atomic<cudaError_t> broken[Settings::kMostDevices];
std::atomic<bool> peers[Settings::kMostDevices][Settings::kMostDevices];
std::atomic<pid_t> owner{0};  // the process whose threads the streams are

}  // namespace

cudaError_t said(cudaError_t code) {
  if (code != cudaSuccess) last = code;
  return code;
}

cudaError_t cudaGetLastError() {
  const cudaError_t code = last;
  last = cudaSuccess;
  return code;
}

int current_device() { return current; }

cudaError_t usable(int device) {
  const pid_t self = ::getpid();
  pid_t first = 0;
  if (!owner.compare_exchange_strong(first, self, std::memory_order_relaxed) && first != self) return said(cudaErrorInitializationError);
  if (device < 0 || device >= settings().devices) return said(settings().devices == 0 ? cudaErrorNoDevice : cudaErrorInvalidDevice);
  return said(broken[device].load(std::memory_order_relaxed));
}

void break_device(int device, cudaError_t code) { broken[device].store(code, std::memory_order_relaxed); }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = settings().devices;
  return said(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  const cudaError_t code = usable(device);
  if (code == cudaSuccess) current = device;
  return code;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (const cudaError_t code = usable(device); code != cudaSuccess) return code;
  *properties = {};
  std::strncpy(properties->name, "emulated", sizeof(properties->name) - 1);
  properties->multiProcessorCount = 4;
  // The same for all processes of this machine, since it was started: they can have the same memory.
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::uint64_t words[2] = {0xcbf29ce484222325u, static_cast<std::uint64_t>(device)};
  for (const char letter : boot) words[0] = (words[0] ^ static_cast<unsigned char>(letter)) * 0x100000001b3u;
  std::memcpy(properties->uuid.bytes, words, sizeof(properties->uuid.bytes));
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return usable(current);
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (const cudaError_t code = usable(device); code != cudaSuccess) return code;
  if (const cudaError_t code = usable(peer); code != cudaSuccess) return code;
  *can = device != peer && !settings().refuse_peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  if (const cudaError_t code = usable(current); code != cudaSuccess) return code;
  if (const cudaError_t code = usable(peer); code != cudaSuccess) return code;
  if (flags != 0) return said(cudaErrorInvalidValue);
  if (peer == current || settings().refuse_peer) return said(cudaErrorPeerAccessUnsupported);
  return said(peers[current][peer].exchange(true, std::memory_order_relaxed) ? cudaErrorPeerAccessAlreadyEnabled : cudaSuccess);
}

namespace {

struct Said {
  const char* name;
  const char* text;
};

Said meaning(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return {"cudaSuccess", "no error"};
    case cudaErrorInvalidValue: return {"cudaErrorInvalidValue", "invalid argument"};
    case cudaErrorMemoryAllocation: return {"cudaErrorMemoryAllocation", "out of memory"};
    case cudaErrorInitializationError: return {"cudaErrorInitializationError", "initialization error"};
    case cudaErrorInsufficientDriver: return {"cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"};
    case cudaErrorNoDevice: return {"cudaErrorNoDevice", "no CUDA-capable device is detected"};
    case cudaErrorInvalidDevice: return {"cudaErrorInvalidDevice", "invalid device ordinal"};
    case cudaErrorDeviceUninitialized: return {"cudaErrorDeviceUninitialized", "invalid device context"};
    case cudaErrorMapBufferObjectFailed: return {"cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"};
    case cudaErrorPeerAccessUnsupported: return {"cudaErrorPeerAccessUnsupported", "peer access is not supported between these two devices"};
    case cudaErrorInvalidResourceHandle: return {"cudaErrorInvalidResourceHandle", "invalid resource handle"};
    case cudaErrorNotReady: return {"cudaErrorNotReady", "device not ready"};
    case cudaErrorIllegalAddress: return {"cudaErrorIllegalAddress", "an illegal memory access was encountered"};
    case cudaErrorPeerAccessAlreadyEnabled: return {"cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"};
    case cudaErrorHostMemoryAlreadyRegistered:
      return {"cudaErrorHostMemoryAlreadyRegistered", "part or all of the requested memory range is already mapped"};
    case cudaErrorHostMemoryNotRegistered: return {"cudaErrorHostMemoryNotRegistered", "pointer does not correspond to a registered memory region"};
    case cudaErrorLaunchFailure: return {"cudaErrorLaunchFailure", "unspecified launch failure"};
    case cudaErrorNotPermitted: return {"cudaErrorNotPermitted", "operation not permitted"};
    case cudaErrorNotSupported: return {"cudaErrorNotSupported", "operation not supported"};
  }
  return {"cudaErrorUnknown", "unknown error"};
}

}  // namespace

const char* cudaGetErrorName(cudaError_t code) { return meaning(code).name; }
const char* cudaGetErrorString(cudaError_t code) { return meaning(code).text; }

}  // namespace wagma::emulated
