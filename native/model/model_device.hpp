// Devices of the model. Each queue is a task of its own, which carries out what it was given, in order: so the scheduler decides when a kernel
// reads what it reads, when it is over, and how long its host has no word of that.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "board.hpp"
#include "wagma/device.hpp"
#include "wagma/device_buffers.hpp"
#include "wagma/models.hpp"

namespace wagma::check {

inline constexpr std::size_t kDeviceChunk = std::size_t{1} << 20;  // bytes: src/transport_device.cpp takes no less at once
inline constexpr int kDeviceBuffers = 3;

inline std::size_t device_elements(int chunks) { return (chunks - 1) * (kDeviceChunk / sizeof(float)) + 8; }

struct Work;  // of a queue

// What the devices of all ranks share: addresses of their memory, who has it open, stamps. One of a run, with the board of its buffers.
class Machinery {
 public:
  Machinery(int ranks, bool roles_known);
  static Machinery& present();

  // This rank's device does nothing before release() is called.
  void hold_up(int rank) { held_up_ = rank; }
  void release();

  std::shared_ptr<DeviceBuffers> buffers(int rank);
  Atomic<Version>& stamp(int rank, int buffer) { return stamps_[rank * kDeviceBuffers + buffer]; }
  Atomic<Version>& stamp(const void* at);

 private:
  friend class ModelDevice;
  friend struct Work;
  static std::byte* pool();
  static std::size_t bytes_of_rank();

  const int ranks_;
  std::unique_ptr<Atomic<Version>[]> stamps_;
  std::unique_ptr<Atomic<std::uint32_t>[]> open_;  // by rank: how many have its memory open
  std::vector<char> freed_;
  std::vector<Work*> queues_;
  int held_up_ = -1;
  Atomic<std::uint32_t> free_{0};  // of rank held_up_
};

// For engines over them: models are arrays in host memory, which are published and merged at once, and stamped.
std::shared_ptr<Models> stamped_models(std::size_t count);

}  // namespace wagma::check
