// The functions of the CUDA runtime that wagma uses, for devices that do not exist: same names, same meaning, in a namespace.
//
// A stream is a thread that runs its operations one after the other, device memory is shared memory of the host, and a kernel is a loop
// over its blocks. What the emulation promises about order is what CUDA promises, and no more: an operation happens after what the host
// did before it was enqueued, after the operations before it in its stream, and after the events that its stream was made to wait for;
// the host is behind an event only once it has asked and been told so. None of the emulation's own locks and atomics add to that
// (streams.cpp says how), so where an event is missing ThreadSanitizer reports the race.
//
// Not emulated: priorities (given, checked, without effect), the implicit waits between the default stream and others (streams have to be
// cudaStreamNonBlocking), a kernel that waits for room on a busy device, graphs, speed. Stricter than CUDA: a copy from or to memory
// that is not pinned is as asynchronous as any other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace wagma::emulated {

enum cudaError_t : int {  // CUDA's numbers
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorDeviceUninitialized = 201,
  cudaErrorMapBufferObjectFailed = 205,
  cudaErrorPeerAccessUnsupported = 217,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorPeerAccessAlreadyEnabled = 704,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorHostMemoryNotRegistered = 713,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801,
};
const char* cudaGetErrorName(cudaError_t code);
const char* cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetLastError();

struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  int multiProcessorCount;
};
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags);

// --- streams.cpp ----------------------------------------------------------------------------------

struct EmulatedWorker;
struct EmulatedEvent;
using cudaStream_t = EmulatedWorker*;
using cudaEvent_t = EmulatedEvent*;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);  // what it was given is still done
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

// Any work, in the stream's order; it must not throw.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
// From when the stream comes to it, every call of this device answers with `code`, as after a kernel that has gone wrong.
cudaError_t enqueue_fault(cudaStream_t stream, cudaError_t code);

// --- memory.cpp -----------------------------------------------------------------------------------

constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2, cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2;
constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
struct cudaIpcMemHandle_t {
  char reserved[64];
};

cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory);
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* memory);

// --- for streams.cpp and memory.cpp -----------------------------------------------------------------

// What every call begins with: cudaSuccess, what a kernel has done to this device, or that the process is a forked one, whose parent has
// the streams.
cudaError_t usable(int device);
int current_device();
cudaError_t said(cudaError_t code);  // remembers it for cudaGetLastError
void break_device(int device, cudaError_t code);

}  // namespace wagma::emulated
