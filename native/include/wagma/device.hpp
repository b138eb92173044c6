// What wagma needs of an accelerator: memory that other processes of the node can map, and side streams with a few kernels of its own.
//
// There is one implementation, native/device, in terms of the CUDA runtime's functions. It is compiled twice: by nvcc for GPUs
// (_native_cuda), and with any compiler for an emulated device (emulated_device), whose streams are threads and whose memory is the
// host's. So everything but the hardware runs, and is tested, without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"
#include "wagma/transport.hpp"

namespace wagma {

// Of the application: a cudaStream_t as a number; 0 is its default stream.
using Stream = std::uintptr_t;

// A point in a queue: all that was enqueued before it.
using Mark = std::uint64_t;

// What the device or its driver refuses; the message names the device, the call, what was asked for and what it said.
struct DeviceError : TransportError {
  using TransportError::TransportError;
};

// There is too little memory; the message says how much was asked for and how much is free.
struct OutOfDeviceMemory : DeviceError {
  using DeviceError::DeviceError;
};

// A tensor of the application's in the memory of a device, without gaps. No `data`: it reads as zeros, and what is written to it is lost.
struct Part {
  void* data = nullptr;
  std::size_t count = 0;
  DType dtype = DType::float32;
};

// The tensors that make up a model, one after the other, where kernels can look them up. Their dtypes may differ from the model's, each
// element is converted: read exactly (the model's dtype can hold every one of theirs), written rounded once more.
class Parts {
 public:
  virtual ~Parts() = default;
  virtual DType dtype() const = 0;       // of the model
  virtual std::size_t count() const = 0;  // elements
  // Other addresses for the same tensors, in order. Not while kernels with these parts are under way.
  virtual void place(const std::vector<void*>& data) = 0;
};

// A slice of a version's data: elements [begin, begin + count) of the model, for all members at once.
struct Reduction {
  struct Source {
    const std::byte* data = nullptr;  // element 0 of the buffer, items of `dtype`; nullptr: the null contribution, zeros
    const std::int64_t* stamp = nullptr;
    Version expected = 0;  // what has to stand at `stamp`
  };
  struct Target {
    std::byte* data = nullptr;  // element 0 of the buffer: accumulators if divisor is 1, else items of `dtype`
    std::int64_t* stamp = nullptr;
    int divisor = 1;
  };
  DType dtype = DType::float32;
  std::size_t begin = 0, count = 0;
  std::vector<Source> sources;  // in association order, kMostMembers at most
  std::vector<Target> targets;
  std::optional<Version> stamp;  // for all targets: of the slice that comes last
};

// A contribution that was not what its member had announced: found by a kernel.
struct WrongStamp {
  int source;  // among the sources
  Version found;
};

// A side stream: work is done in order, and beside that of all other streams. Nothing here waits for the device; what was enqueued
// has to stay as it is (memory, Parts) until a mark behind it is reached. One thread at a time. Every call may throw DeviceError.
class Queue {
 public:
  virtual ~Queue() = default;  // waits for what was enqueued, for a few seconds at most; memory that is still in use then must not be freed

  // What is enqueued here from now on begins after what that stream of the application has been given so far.
  virtual void follow(Stream caller) = 0;
  // The reverse: what that stream is given from now on begins after what was enqueued here so far.
  virtual void lead(Stream caller) = 0;
  // What is enqueued here from now on begins after that point of another queue of the same device.
  virtual void follow(Queue& other, Mark mark) = 0;

  virtual Mark mark() = 0;
  // Whether it is done. Throws what went wrong on the device before it.
  virtual bool reached(Mark mark) = 0;
  // Waits for it; at most `limit_s`, then DeviceError. For the ends of things, not for a training loop.
  virtual void wait(Mark mark, double limit_s) = 0;

  // Elements [begin, begin + count) of the parts, converted to the model's items, to `to` and the items behind it. Then `stamp`, if there
  // is a place for it: whoever reads it there reads a whole model.
  virtual void publish(const Parts& parts, std::size_t begin, std::size_t count, std::byte* to, std::int64_t* stamp, Version version) = 0;
  // Along the association tree, with the bits of wagma/reduce.hpp.
  virtual void reduce(const Reduction& reduction) = 0;
  // What the reductions found whose marks were reached; each once.
  virtual std::optional<WrongStamp> wrong_stamp() = 0;
  // parts[begin + i] = (total[i] + own_weight * parts[begin + i]) / divisor, own_weight 0 or 1, for i < count; total: accumulators.
  virtual void merge(Parts& parts, std::size_t begin, std::size_t count, const std::byte* total, int own_weight, int divisor) = 0;
  // parts[begin + i] = items[i]: a finished model.
  virtual void take(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) = 0;
  // parts[begin + i] += items[i], in the accumulation type, rounded once.
  virtual void add(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) = 0;
  // (total + own) / divisor of plain arrays, as merge_into of wagma/reduce.hpp, into items; own may be nullptr, destination may be total.
  virtual void merge_into(DType dtype, std::byte* destination, const std::byte* own, const std::byte* total, int divisor, std::size_t count) = 0;
  // Between host (pinned, or the call may wait) and device, or on the device.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void write_stamp(std::int64_t* stamp, Version version) = 0;
};

class Device {
 public:
  static constexpr int kMostMembers = 128;  // of one reduction

  virtual ~Device() = default;
  virtual const char* kind() const = 0;      // "cuda" or "emulated"
  virtual int index() const = 0;             // among the devices that this process sees
  virtual std::string name() const = 0;      // the model, "NVIDIA H200"
  virtual std::string identity() const = 0;  // the same in all processes that use this very device, and in no other

  // urgent: its kernels go before those of other streams, as soon as there is room.
  virtual std::unique_ptr<Queue> queue(bool urgent) = 0;
  virtual std::unique_ptr<Parts> parts(DType model, const std::vector<Part>& tensors) = 0;

  struct Memory {
    std::size_t free, total;
  };
  virtual Memory memory() const = 0;
  virtual std::byte* allocate(std::size_t bytes) = 0;  // 256-byte aligned, zeros. Throws OutOfDeviceMemory
  virtual void release(std::byte* allocated) noexcept = 0;
  virtual std::byte* allocate_host(std::size_t bytes) = 0;  // pinned
  virtual void release_host(std::byte* allocated) noexcept = 0;
  // Makes memory of the host fast to copy from and to; false if the system does not permit it.
  virtual bool pin(std::byte* memory, std::size_t bytes) noexcept = 0;
  virtual void unpin(std::byte* memory) noexcept = 0;

  // A text with which another process (or this one) can open what allocate() gave. Throws DeviceError where that is not permitted.
  virtual std::string share(std::byte* allocated) = 0;
  // Kernels and copies of this device may use it then. Throws DeviceError where device or system do not permit it.
  virtual std::byte* open(const std::string& shared) = 0;
  virtual void close(std::byte* opened) noexcept = 0;
};

// Device `index` of the emulated ones; what can be set is said in docs/devices.md. Throws DeviceError if there is no such one.
std::shared_ptr<Device> emulated_device(int index);
int emulated_devices();

}  // namespace wagma
