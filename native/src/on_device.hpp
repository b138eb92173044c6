// What both kinds of models on a device need: memory that is given back, and a way between device and host in chunks.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "wagma/concurrency.hpp"
#include "wagma/device.hpp"
#include "wagma/digest.hpp"
#include "wagma/models.hpp"

namespace wagma {

// Memory of a device, or pinned memory of the host. It is not looked whether anything is under way there: Models::settled.
class Allocation {
 public:
  enum Where { on_device, on_host };
  Allocation() = default;
  Allocation(std::shared_ptr<Device> device, Where where, std::size_t bytes)
      : device_(std::move(device)), where_(where), data_(where == on_device ? device_->allocate(bytes) : device_->allocate_host(bytes)) {}
  Allocation(Allocation&& other) noexcept { *this = std::move(other); }
  Allocation& operator=(Allocation&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(where_, other.where_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Allocation() {
    if (data_) where_ == on_device ? device_->release(data_) : device_->release_host(data_);
  }
  std::byte* data() const { return data_; }

 private:
  std::shared_ptr<Device> device_;
  Where where_ = on_device;
  std::byte* data_ = nullptr;
};

// What the engine was handed as `own`.
inline const OnDevice& model_of(const void* own, DType dtype, std::size_t count) {
  const auto& model = *static_cast<const OnDevice*>(own);
  if (!model.buffer && (model.parts->dtype() != dtype || model.parts->count() != count)) {
    throw std::invalid_argument("the model has " + std::to_string(model.parts->count()) + " elements of " + dtype_name(model.parts->dtype()) +
                                ": must be " + std::to_string(count) + " of " + dtype_name(dtype));
  }
  return model;
}

// Whether all that the queue was given is done; looks for so long. After an error of the device nothing runs there any more.
inline bool is_idle(Queue& queue, double limit_s) noexcept {
  try {
    const Mark all = queue.mark();
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit_s));
    while (!queue.reached(all)) {
      if (Clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  } catch (const DeviceError&) {
    // Also of what was begun before.
  }
  return true;
}

// Chunks between a device and the host that are waited for, two at a time, so that one is copied while the host has the other in its hands.
// For what is done once, or for checks: by one thread, over a queue of its own.
class Ferry {
 public:
  Ferry(std::shared_ptr<Device> device, Queue& queue, std::size_t chunk_bytes, double limit_s)
      : device_(std::move(device)), queue_(queue), chunk_(chunk_bytes), limit_s_(limit_s) {}

  void to_device(std::byte* to, const std::byte* from, std::size_t bytes) {
    carry(bytes, [&](int slot, std::size_t begin, std::size_t size) {
      std::memcpy(pinned(slot), from + begin, size);
      queue_.copy(to + begin, pinned(slot), size);
    });
  }

  std::uint64_t digest(const std::byte* from, std::size_t bytes) {
    return digest_of(bytes, [&](int slot, std::size_t begin, std::size_t size) { queue_.copy(pinned(slot), from + begin, size); });
  }

  // Of what publish() makes of them.
  std::uint64_t digest(const Parts& parts) {
    const std::size_t item = item_size(parts.dtype());
    return digest_of(parts.count() * item, [&](int slot, std::size_t begin, std::size_t size) {
      queue_.publish(parts, begin / item, size / item, scratch(slot), nullptr, 0);
      queue_.copy(pinned(slot), scratch(slot), size);
    });
  }

  // Accumulators become a model in place. Through scratch memory: where items are smaller, those of a chunk come to lie where accumulators
  // of earlier chunks were, which the queue's order has read by then, and the first one's where its own are.
  void finish(DType dtype, std::byte* target, std::size_t count) {
    const std::size_t item = item_size(dtype), sum = accumulator_size(dtype);
    carry(count * sum, [&](int slot, std::size_t begin, std::size_t size) {
      queue_.merge_into(dtype, scratch(slot), nullptr, target + begin, 1, size / sum);
      queue_.copy(target + begin / sum * item, scratch(slot), size / sum * item);
    });
  }

 private:
  static constexpr int kSlots = 2;
  static constexpr std::size_t kAlignment = 256;  // of chunks that kernels work on

  // begin(slot, from, size) enqueues a chunk's part; end(slot, size) has what came of it.
  template <class Begin, class End>
  void carry(std::size_t bytes, Begin begin, End end) {
    std::array<Mark, kSlots> marks{};
    const std::size_t chunks = (bytes + chunk_ - 1) / chunk_;
    const auto size = [&](std::size_t chunk) { return std::min(chunk_, bytes - chunk * chunk_); };
    for (std::size_t chunk = 0; chunk < chunks + kSlots; ++chunk) {
      const int slot = static_cast<int>(chunk % kSlots);
      if (chunk >= kSlots && chunk - kSlots < chunks) {
        queue_.wait(marks[slot], limit_s_);
        end(slot, size(chunk - kSlots));
      }
      if (chunk >= chunks) continue;
      begin(slot, chunk * chunk_, size(chunk));
      marks[slot] = queue_.mark();
    }
  }
  template <class Begin>
  void carry(std::size_t bytes, Begin begin) {
    carry(bytes, begin, [](int, std::size_t) {});
  }

  template <class Begin>
  std::uint64_t digest_of(std::size_t bytes, Begin begin) {
    Digest all(bytes);
    carry(bytes, begin, [&](int slot, std::size_t size) { all.add(pinned(slot), size); });
    return all.value();
  }

  std::size_t slot_bytes() const { return (chunk_ + kAlignment - 1) / kAlignment * kAlignment; }
  std::byte* pinned(int slot) { return of(pinned_, Allocation::on_host, slot); }
  std::byte* scratch(int slot) { return of(scratch_, Allocation::on_device, slot); }
  std::byte* of(Allocation& memory, Allocation::Where where, int slot) {
    if (!memory.data()) memory = Allocation(device_, where, kSlots * slot_bytes());
    return memory.data() + slot * slot_bytes();
  }

  const std::shared_ptr<Device> device_;
  Queue& queue_;
  const std::size_t chunk_;  // bytes
  const double limit_s_;
  Allocation pinned_, scratch_;
};

}  // namespace wagma
