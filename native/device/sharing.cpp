// Memory of a device for others: in this process by its address, in another one by what the runtime calls an IPC handle.
#include <unistd.h>

#include <cstring>
#include <random>
#include <sstream>
#include <stdexcept>

#include "runtime_device.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

namespace {

constexpr const char* kFormat = "wagma-device-memory-1";

// Not the process id alone: in two containers it may be the same. Of this load of the library, which a fork hands on, hence the id, too.
std::string this_process() {
  static const std::uint64_t token = [] {
    std::random_device entropy;
    return (static_cast<std::uint64_t>(entropy()) << 32) | entropy();
  }();
  std::ostringstream text;
  text << std::hex << token << "-" << std::dec << ::getpid();
  return text.str();
}

std::string to_text(const cudaIpcMemHandle_t& handle) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char item : handle.reserved) {
    text += digits[static_cast<unsigned char>(item) >> 4];
    text += digits[static_cast<unsigned char>(item) & 15];
  }
  return text;
}

bool from_text(const std::string& text, cudaIpcMemHandle_t& handle) {
  if (text.size() != 2 * sizeof(handle.reserved) || text.find_first_not_of("0123456789abcdef") != std::string::npos) return false;
  for (std::size_t i = 0; i < sizeof(handle.reserved); ++i) {
    handle.reserved[i] = static_cast<char>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
  }
  return true;
}

}  // namespace

struct RuntimeDevice::Shared {
  std::string kind, process, identity;
  long process_id = 0;
  int index = 0;
  std::size_t bytes = 0;
  std::uintptr_t address = 0;
  cudaIpcMemHandle_t handle{};

  std::string text() const {
    std::ostringstream text;
    text << kFormat << ' ' << kind << ' ' << process << ' ' << process_id << ' ' << identity << ' ' << index << ' ' << bytes << ' ';
    text << address << ' ' << to_text(handle);
    return text.str();
  }
  static bool read(const std::string& text, Shared& shared) {
    std::istringstream words(text);
    std::string format, handle, more;
    words >> format >> shared.kind >> shared.process >> shared.process_id >> shared.identity >> shared.index >> shared.bytes;
    words >> shared.address >> handle;
    return words && format == kFormat && !(words >> more) && from_text(handle, shared.handle);
  }
};

std::string RuntimeDevice::share(std::byte* allocated) {
  const Current current(index_, label_);
  Shared shared{kKind, this_process(), identity_, ::getpid(), index_, 0, reinterpret_cast<std::uintptr_t>(allocated), {}};
  {
    std::lock_guard lock(mutex_);
    const auto found = allocated_.find(allocated);
    if (found == allocated_.end()) throw std::invalid_argument("share: must be the beginning of memory that this device has allocated");
    shared.bytes = found->second;
  }
  check(cudaIpcGetMemHandle(&shared.handle, allocated), label_, "cudaIpcGetMemHandle", [&] {
    return std::to_string(shared.bytes) + " bytes, to share them with other processes";
  });
  return shared.text();
}

std::byte* RuntimeDevice::open(const std::string& text) {
  const Current current(index_, label_);
  Shared shared;
  if (!Shared::read(text, shared)) {
    throw DeviceError("device " + label_ + ": what was to be opened is not what Device::share gives: \"" + text.substr(0, 80) + "\"");
  }
  const std::string what = std::to_string(shared.bytes) + " bytes of process " + std::to_string(shared.process_id) + " on its device " + shared.kind +
                           ":" + std::to_string(shared.index) + " (" + shared.identity + ")";
  if (shared.kind != kKind) throw DeviceError("device " + label_ + ": cannot open " + what + ": another kind of device");
  return shared.process == this_process() ? open_here(shared, what) : open_elsewhere(shared, what);
}

bool RuntimeDevice::has(const std::byte* allocated, std::size_t bytes) const {
  std::lock_guard lock(mutex_);
  const auto found = allocated_.find(allocated);
  return found != allocated_.end() && found->second == bytes;
}

// Makes the memory of another device of this process reachable, for all of this device's kernels from now on.
void RuntimeDevice::reach(int peer, const std::string& what) {
  int can = 0;
  check(cudaDeviceCanAccessPeer(&can, index_, peer), label_, "cudaDeviceCanAccessPeer", [&] { return what; });
  if (!can) throw DeviceError("device " + label_ + ": cannot open " + what + ": the two devices have no path to each other's memory");
  const cudaError_t code = cudaDeviceEnablePeerAccess(peer, 0);
  if (code == cudaErrorPeerAccessAlreadyEnabled) {  // by another opening, or by the application
    cudaGetLastError();
    return;
  }
  check(code, label_, "cudaDeviceEnablePeerAccess", [&] { return what; });
}

std::byte* RuntimeDevice::open_here(const Shared& shared, const std::string& what) {
  auto* const memory = reinterpret_cast<std::byte*>(shared.address);
  const auto owner = existing_device(shared.index);
  if (!owner || !owner->has(memory, shared.bytes)) throw DeviceError("device " + label_ + ": cannot open " + what + ": it has been released");
  if (shared.index != index_) reach(shared.index, what);
  return memory;
}

std::byte* RuntimeDevice::open_elsewhere(const Shared& shared, const std::string& what) {
  void* memory = nullptr;
  const cudaError_t code = cudaIpcOpenMemHandle(&memory, shared.handle, cudaIpcMemLazyEnablePeerAccess);
  if (code != cudaSuccess) {
    cudaGetLastError();
    const std::string hint = code == cudaErrorPeerAccessUnsupported
                                 ? "the two devices have no path to each other's memory"
                                 : "both processes must be of one user and machine and, in containers, share process ids and IPC (--pid, --ipc)";
    throw DeviceError("device " + label_ + ": cannot open " + what + ": cudaIpcOpenMemHandle: " + cudaGetErrorString(code) + " (" +
                      cudaGetErrorName(code) + ", " + std::to_string(static_cast<int>(code)) + "); " + hint);
  }
  auto* const opened = static_cast<std::byte*>(memory);
  std::lock_guard lock(mutex_);
  ++opened_[opened];
  return opened;
}

void RuntimeDevice::close(std::byte* opened) noexcept {
  {
    std::lock_guard lock(mutex_);
    const auto found = opened_.find(opened);
    if (found == opened_.end()) return;  // of this process: nothing was opened
    if (--found->second == 0) opened_.erase(found);
  }
  with_device(index_, [&] { return succeeds(cudaIpcCloseMemHandle(opened)); });
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
