#include "device.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "parts.hpp"
#include "queue.hpp"
#include "runtime_device.hpp"
#include "waiting.hpp"

#if !defined(__CUDACC__)
#include "emulated/settings.hpp"
#endif

namespace wagma {
namespace WAGMA_RUNTIME {

namespace {

// What is shared with other processes is a multiple of this, on a boundary of it: CUDA takes smaller allocations out of larger blocks of
// this size, and another process would get the whole block to see.
constexpr std::size_t kShareable = std::size_t{2} << 20;
constexpr double kClearLimit = 60.0;  // seconds, for zeros on a device that may be busy

std::size_t rounded_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::string in_bytes(std::size_t bytes) { return std::to_string(bytes) + " bytes"; }

std::string hexadecimal(const cudaUUID_t& uuid) {
  std::string text;
  for (const char byte : uuid.bytes) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned char>(byte));
    text += digits;
  }
  return text;
}

std::string in_words(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }  // 13000: "13.0"

// Devices that somebody has: ranks that are threads are to share one.
struct Existing {
  std::mutex mutex;
  std::map<int, std::weak_ptr<RuntimeDevice>> devices;
};
Existing& existing() {
  static Existing* const only = new Existing;  // never destroyed: a device may be asked for, or end, after main
  return *only;
}

}  // namespace

int device_count() noexcept {
  try {
    int count = 0;
    return succeeds(cudaGetDeviceCount(&count)) ? count : 0;
  } catch (const std::exception&) {  // the emulated runtime's, of a knob that makes no sense
    return 0;
  }
}

std::string why_no_device() {
  int count = 0, driver = 0, runtime = 0;
  try {
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (succeeds(code)) return count > 0 ? "" : "there is none";
    // One error for both: a driver that is too old, and none at all.
    if (code == cudaErrorInsufficientDriver && succeeds(cudaDriverGetVersion(&driver)) && succeeds(cudaRuntimeGetVersion(&runtime))) {
      if (driver == 0) return "there is no NVIDIA driver";
      return "its driver supports CUDA " + in_words(driver) + " at most; wagma was built with CUDA " + in_words(runtime);
    }
    return std::string(cudaGetErrorString(code)) + " (" + cudaGetErrorName(code) + ", " + std::to_string(static_cast<int>(code)) + ")";
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::shared_ptr<Device> make_device(int index) {
  const std::string what = std::string("device ") + kKind + ":" + std::to_string(index) + ": ";
  if (const std::string reason = why_no_device(); !reason.empty()) throw DeviceError(what + reason);
  const int count = device_count();
  if (index < 0 || index >= count) {
    throw DeviceError(what + "this process sees " + std::to_string(count) +
                      (count == 1 ? " device, number 0" : " devices, numbers 0 to " + std::to_string(count - 1)));
  }
  std::lock_guard lock(existing().mutex);
  auto& place = existing().devices[index];
  auto device = place.lock();
  if (!device) place = device = std::make_shared<RuntimeDevice>(index);
  return device;
}

std::shared_ptr<RuntimeDevice> existing_device(int index) {
  std::lock_guard lock(existing().mutex);
  const auto found = existing().devices.find(index);
  return found == existing().devices.end() ? nullptr : found->second.lock();
}

RuntimeDevice::RuntimeDevice(int index) : index_(index), label_(device_label(index, kKind)) {
  const Current current(index_, label_);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), label_, "cudaGetDeviceProperties");
  name_ = properties.name;
  label_ = device_label(index, name_);
  // The uuid and not the place on the bus: it tells the slices of a partitioned GPU apart, and GPUs of different machines.
  identity_ = std::string(kKind) + "-" + hexadecimal(properties.uuid);
  processors_ = static_cast<unsigned>(properties.multiProcessorCount);
  load_kernels(label_);
  check(cudaStreamCreateWithPriority(&errands_, cudaStreamNonBlocking, 0), label_, "cudaStreamCreateWithPriority");
}

RuntimeDevice::~RuntimeDevice() {
  with_device(index_, [&] {
    for (const auto& [memory, times] : opened_) {
      for (int i = 0; i < times; ++i) succeeds(cudaIpcCloseMemHandle(memory));
    }
    for (const Piece& piece : abandoned_ ? std::vector<Piece>{} : pieces_) succeeds(piece.on_device ? cudaFree(piece.data) : cudaFreeHost(piece.data));
    return succeeds(cudaStreamDestroy(errands_));
  });
}

std::unique_ptr<Queue> RuntimeDevice::queue(bool urgent) { return std::make_unique<RuntimeQueue>(shared_from_this(), urgent); }

std::unique_ptr<Parts> RuntimeDevice::parts(DType model, const std::vector<Part>& tensors) {
  return std::make_unique<RuntimeParts>(shared_from_this(), model, tensors);
}

Device::Memory RuntimeDevice::memory() const {
  const Current current(index_, label_);
  Memory memory{};
  check(cudaMemGetInfo(&memory.free, &memory.total), label_, "cudaMemGetInfo");
  return memory;
}

std::byte* RuntimeDevice::allocate(std::size_t bytes) {
  const Current current(index_, label_);
  const std::size_t whole = rounded_up(std::max<std::size_t>(bytes, 1), kShareable);
  void* memory = nullptr;
  if (whole < bytes) throw OutOfDeviceMemory("device " + label_ + ": " + in_bytes(bytes) + " cannot be had");
  check(cudaMalloc(&memory, whole), label_, "cudaMalloc", [&] {
    Memory left{};
    const bool known = succeeds(cudaMemGetInfo(&left.free, &left.total));
    return in_bytes(whole) + (known ? ", with " + std::to_string(left.free) + " of " + std::to_string(left.total) + " free" : "");
  });
  auto* const allocated = static_cast<std::byte*>(memory);
  try {
    clear(allocated, whole);
  } catch (...) {
    succeeds(cudaFree(memory));
    throw;
  }
  std::lock_guard lock(mutex_);
  allocated_[allocated] = whole;
  return allocated;
}

void RuntimeDevice::clear(std::byte* allocated, std::size_t bytes) {
  cudaEvent_t behind = nullptr;
  check(cudaEventCreateWithFlags(&behind, cudaEventDisableTiming), label_, "cudaEventCreateWithFlags");
  cudaError_t code = cudaSuccess;
  {
    std::lock_guard lock(mutex_);
    code = cudaMemsetAsync(allocated, 0, bytes, errands_);
    if (code == cudaSuccess) code = cudaEventRecord(behind, errands_);
  }
  const auto over = [&] {
    if (code == cudaSuccess || code == cudaErrorNotReady) code = cudaEventQuery(behind);
    return code != cudaErrorNotReady;
  };
  const bool done = wait_until(kClearLimit, over);
  succeeds(cudaEventDestroy(behind));
  if (!done) throw DeviceError("device " + label_ + ": zeros for " + in_bytes(bytes) + " were not written within 60 s");
  cudaGetLastError();  // "not ready", which the asking has left there
  check(code, label_, "cudaMemsetAsync", [&] { return in_bytes(bytes); });
}

void RuntimeDevice::release(std::byte* allocated) noexcept {
  if (allocated == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    if (allocated_.erase(allocated) == 0 || abandoned_) return;
  }
  with_device(index_, [&] { return succeeds(cudaFree(allocated)); });
}

std::byte* RuntimeDevice::allocate_host(std::size_t bytes) {
  const Current current(index_, label_);
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, std::max<std::size_t>(bytes, 1), cudaHostAllocPortable | cudaHostAllocMapped), label_, "cudaHostAlloc",
        [&] { return in_bytes(bytes) + " of the host's memory"; });
  std::memset(memory, 0, bytes);
  return static_cast<std::byte*>(memory);
}

void RuntimeDevice::release_host(std::byte* allocated) noexcept {
  if (allocated != nullptr && !abandoned_) with_device(index_, [&] { return succeeds(cudaFreeHost(allocated)); });
}

bool RuntimeDevice::pin(std::byte* memory, std::size_t bytes) noexcept {
  return with_device(index_, [&] { return succeeds(cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped)); });
}

void RuntimeDevice::unpin(std::byte* memory) noexcept {
  with_device(index_, [&] { return succeeds(cudaHostUnregister(memory)); });
}

RuntimeDevice::Piece RuntimeDevice::take(std::size_t bytes, bool on_device) {
  Piece piece{nullptr, 256, on_device};
  while (piece.bytes < bytes) piece.bytes *= 2;
  {
    std::lock_guard lock(mutex_);
    for (Piece& kept : pieces_) {
      if (kept.bytes != piece.bytes || kept.on_device != on_device) continue;
      piece = kept;
      kept = pieces_.back();
      pieces_.pop_back();
      return piece;
    }
  }
  const Current current(index_, label_);
  void* memory = nullptr;
  const unsigned flags = cudaHostAllocPortable | cudaHostAllocMapped;
  const cudaError_t code = on_device ? cudaMalloc(&memory, piece.bytes) : cudaHostAlloc(&memory, piece.bytes, flags);
  check(code, label_, on_device ? "cudaMalloc" : "cudaHostAlloc", [&] { return in_bytes(piece.bytes); });
  piece.data = static_cast<std::byte*>(memory);
  return piece;
}

void RuntimeDevice::give(const Piece& piece) noexcept {
  if (piece.data == nullptr) return;
  std::lock_guard lock(mutex_);
  try {
    pieces_.push_back(piece);
  } catch (const std::bad_alloc&) {
    // Lost, until the process ends: 256 bytes more or less, on a machine that has none left.
  }
}

void RuntimeDevice::upload(void* to, const void* from, std::size_t bytes, cudaEvent_t behind) {
  std::lock_guard lock(mutex_);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, errands_), label_, "cudaMemcpyAsync", [&] { return in_bytes(bytes); });
  check(cudaEventRecord(behind, errands_), label_, "cudaEventRecord");
}

}  // namespace WAGMA_RUNTIME

#if !defined(__CUDACC__)
// A knob that makes no sense is said as what it is: by settings(), first.
std::shared_ptr<Device> emulated_device(int index) { return emulated::settings(), emulated::make_device(index); }
int emulated_devices() { return emulated::settings().devices; }
#endif

}  // namespace wagma
