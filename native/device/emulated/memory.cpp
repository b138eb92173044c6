// Memory of the emulated devices: a memfd for each allocation, which other processes of the machine can map; and what is done with it in
// the order of a stream.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>

#include "runtime.hpp"
#include "settings.hpp"
#include "wagma/segment.hpp"
#include "wagma/transport.hpp"

namespace wagma::emulated {

namespace {

constexpr char kMagic[8] = {'w', 'a', 'g', 'm', 'a', 'e', 'm', 'u'};

// What a cudaIpcMemHandle_t carries here.
struct Handle {
  char magic[sizeof(kMagic)];
  std::int64_t process;
  std::int32_t descriptor;
  std::int32_t device;
  std::uint64_t bytes;
  std::uint64_t identity;  // of the file
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t));

struct Allocated {
  std::shared_ptr<Segment> memory;
  int device;
};

struct Opened {
  std::shared_ptr<Segment> memory;
  int times;  // as CUDA: opening again gives the same address, and counts
};

using Exporter = std::tuple<std::int64_t, std::int32_t, std::uint64_t>;  // process, descriptor, identity

// The lock orders hosts that allocate or share; no stream takes it. Never destroyed.
struct Table {
  std::mutex mutex;
  std::map<void*, Allocated> allocated;
  std::map<Exporter, Opened> opened;
  std::set<void*> host;        // by cudaHostAlloc
  std::set<void*> registered;  // by cudaHostRegister
  std::size_t used[Settings::kMostDevices] = {};
};
Table& table() {
  static Table* const only = new Table;
  return *only;
}

// Memory that is there, not only promised: a machine that has too little says so here, and not by a signal at the first touch.
std::shared_ptr<Segment> reserved(std::size_t bytes) {
  try {
    auto memory = Segment::create(bytes);
    memory->reserve(0, bytes);
    return memory;
  } catch (const TransportError&) {
    return nullptr;
  }
}

}  // namespace

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const int device = current_device();
  if (const cudaError_t code = usable(device); code != cudaSuccess) return code;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  std::lock_guard lock(table().mutex);
  const std::size_t most = settings().memory;
  std::size_t& used = table().used[device];
  if (used > most || bytes > most - used) return said(cudaErrorMemoryAllocation);
  const auto made = reserved(bytes);
  if (!made) return said(cudaErrorMemoryAllocation);
  used += bytes;
  *memory = made->data();
  table().allocated[*memory] = {made, device};
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  // Of a device that has failed nothing is given back, as with CUDA: its streams may still be at work there.
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  std::lock_guard lock(table().mutex);
  const auto found = table().allocated.find(memory);
  if (found == table().allocated.end()) return said(cudaErrorInvalidValue);
  table().used[found->second.device] -= found->second.memory->size();
  table().allocated.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const int device = current_device();
  if (const cudaError_t code = usable(device); code != cudaSuccess) return code;
  std::lock_guard lock(table().mutex);
  *total = settings().memory;
  const std::size_t used = table().used[device];
  *free = used < *total ? *total - used : 0;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  const std::size_t pages = (bytes + 4095) / 4096 * 4096;
  *memory = pages == 0 ? nullptr : std::aligned_alloc(4096, pages);
  if (*memory == nullptr) return bytes == 0 ? cudaSuccess : said(cudaErrorMemoryAllocation);
  std::lock_guard lock(table().mutex);
  table().host.insert(*memory);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  {
    std::lock_guard lock(table().mutex);
    if (table().host.erase(memory) == 0) return said(cudaErrorInvalidValue);
  }
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  if (memory == nullptr || bytes == 0) return said(cudaErrorInvalidValue);
  if (settings().refuse_pin) return said(cudaErrorNotPermitted);
  std::lock_guard lock(table().mutex);
  return said(table().registered.insert(memory).second ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void* memory) {
  std::lock_guard lock(table().mutex);
  return said(table().registered.erase(memory) == 1 ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDefault || (bytes != 0 && (to == nullptr || from == nullptr))) return said(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    if (bytes != 0) std::memcpy(to, from, bytes);
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes != 0 && to == nullptr) return said(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    if (bytes != 0) std::memset(to, value, bytes);
  });
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  if (settings().refuse_ipc) return said(cudaErrorNotSupported);
  std::lock_guard lock(table().mutex);
  const auto found = table().allocated.find(memory);
  if (found == table().allocated.end()) return said(cudaErrorInvalidValue);
  const Segment& segment = *found->second.memory;
  Handle given{{}, ::getpid(), segment.descriptor(), found->second.device, segment.size(), segment.identity()};
  std::memcpy(given.magic, kMagic, sizeof(kMagic));
  *handle = {};
  std::memcpy(handle->reserved, &given, sizeof(given));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags) {
  const int device = current_device();
  if (const cudaError_t code = usable(device); code != cudaSuccess) return code;
  Handle given;
  std::memcpy(&given, handle.reserved, sizeof(given));
  if (flags != cudaIpcMemLazyEnablePeerAccess || std::memcmp(given.magic, kMagic, sizeof(kMagic)) != 0) return said(cudaErrorInvalidValue);
  if (given.process == ::getpid()) return said(cudaErrorDeviceUninitialized);  // its own: as CUDA
  if (settings().refuse_ipc_open) return said(cudaErrorMapBufferObjectFailed);
  if (given.device != device && settings().refuse_peer) return said(cudaErrorPeerAccessUnsupported);
  std::lock_guard lock(table().mutex);
  Opened& opened = table().opened[{given.process, given.descriptor, given.identity}];
  try {
    if (!opened.memory) opened.memory = Segment::open(given.process, given.descriptor, given.bytes, given.identity);
  } catch (const TransportError&) {
    table().opened.erase({given.process, given.descriptor, given.identity});
    return said(cudaErrorMapBufferObjectFailed);
  }
  ++opened.times;
  *memory = opened.memory->data();
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* memory) {
  std::lock_guard lock(table().mutex);
  for (auto place = table().opened.begin(); place != table().opened.end(); ++place) {
    if (place->second.memory->data() != memory) continue;
    if (--place->second.times == 0) table().opened.erase(place);
    return cudaSuccess;
  }
  return said(cudaErrorInvalidValue);
}

}  // namespace wagma::emulated
