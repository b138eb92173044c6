// How the application's models get into a transport's buffers, and results back: the engine's only way to touch either.
//
//   application's model      buffers                 class
//   array in host memory     host memory             HostModels (models_host.cpp)
//   tensors on a device      memory of the device    DeviceModels (models_device.cpp): CUDA IPC, CUDA-aware MPI
//   tensors on a device      host memory             StagedModels (models_staged.cpp): pinned, in overlapped chunks
//
// What an engine is handed as `own` is a pointer that only its Models knows how to read: to an array, or to an OnDevice. Of a resident
// model, which lies in a buffer, that is nullptr in host memory, and on a device an OnDevice of which only the stream counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "wagma/device.hpp"
#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"

namespace wagma {

// A model on a device, and the stream in whose order the application works on it.
struct OnDevice {
  Parts* parts = nullptr;
  Stream stream = 0;
  std::byte* buffer = nullptr;  // where it lies, if it is resident; then there are no parts
};

class Models {
 public:
  virtual ~Models() = default;

  // Whether `own` is an array that a transport may read and write by itself (Execution::model).
  virtual bool are_host_arrays() const = 0;
  // Whether the buffers are where the application works on its model, so that this can be resident: live in them.
  virtual bool can_be_resident() const = 0;
  // Behind the transport's name in messages; "" or ", through pinned host memory".
  virtual std::string suffix() const { return ""; }

  // The model that lies in `buffer`, as `own` of all that follows, until the next call. `handed`: what the application has handed in. Only
  // where models can be resident.
  virtual void* resident(const void* handed, std::byte* buffer) = 0;

  // Of the application's thread: each begins something, and done() says when it is over; one thing at a time. While it goes on nobody
  // else touches that buffer or model, which the machine's roles ensure. None waits for another rank.
  // A resident model is in that buffer already: then nothing is copied.
  virtual void publish(std::byte* buffer, const void* own, Version stamp) = 0;
  // own = (total + own_weight * published) / divisor; `published` as handed in, which is `own` unless the model is resident: then it is the
  // buffer that it was published in, and `own` lies in another one, which may be that of `total`.
  virtual void merge(void* own, const void* published, const std::byte* total, int own_weight, int divisor) = 0;
  virtual void take(void* own, const std::byte* model) = 0;  // own = a finished model
  virtual void add(void* own, const std::byte* taken) = 0;   // own += a model, in the accumulation type, rounded once
  virtual bool done() { return true; }                       // throws what went wrong meanwhile
  virtual std::uint64_t digest_own(const void* own) = 0;     // after done(); over when it returns

  // Of whoever drives, or before anybody does, but digest(): of either thread. Over when it returns.
  virtual void fill(std::byte* buffer, const void* initial, Version stamp) = 0;  // initial: an array in host memory, of items
  virtual std::uint64_t digest(const std::byte* buffer, std::size_t bytes) = 0;
  virtual void finish(std::byte* target, Version stamp) = 0;  // the raw sum of one contribution becomes a model, in place

  // When nothing is called any more: whether nothing is under way, which is waited for so long. Else neither this object, nor the buffers, nor
  // the application's model and its Parts may be freed: a device may still write there.
  virtual bool settled(double) noexcept { return true; }
};

std::shared_ptr<Models> host_models(DType dtype, std::size_t count, Stores stores);
// How much of a model goes between a device and the host at once: large enough that to begin a chunk (some microseconds) is little beside
// moving it over a bus of some tens of gigabytes a second, small enough that the first and the last one, which nothing else goes on beside,
// are short. A multiple of 256; tests take less.
constexpr std::size_t kChunkBytes = std::size_t{4} << 20;

// For buffers that carry their stamp `stamp_offset` bytes behind their beginning (DeviceBuffers). Here and below: what waits for the device by
// itself, and not by done(), ends with DeviceError after `limit_s`.
std::shared_ptr<Models> device_models(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::size_t stamp_offset, double limit_s,
                                      std::size_t chunk_bytes = kChunkBytes);
// For a transport whose buffers are in host memory and of one piece; they are pinned, if that is permitted.
std::shared_ptr<Models> staged_models(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::shared_ptr<Transport> transport,
                                      double limit_s, std::size_t chunk_bytes = kChunkBytes);

}  // namespace wagma
