// The buffers of a rank whose models stay on its device: one allocation, which peers on the same machine can open.
//
//     buffer 0  | stamp | buffer 1 | stamp | ...
//
// Each is on 256 bytes of its own, and so is its stamp: the version of what lies in it, written by whatever completes it there.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "wagma/device.hpp"

namespace wagma {

class DeviceBuffers {
 public:
  // Zeros. Throws OutOfDeviceMemory, DeviceError.
  DeviceBuffers(std::shared_ptr<Device> device, int buffers, std::size_t buffer_bytes);
  ~DeviceBuffers();  // nobody else may have it open by then, and no queue use it
  DeviceBuffers(const DeviceBuffers&) = delete;
  DeviceBuffers& operator=(const DeviceBuffers&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }
  int buffers() const { return buffers_; }
  std::size_t buffer_bytes() const { return buffer_bytes_; }
  // Where others find buffer `index` and its stamp in what they have opened, which has the same number and size.
  std::size_t offset(int index) const { return stride() * static_cast<std::size_t>(index); }
  std::size_t stamp_offset() const { return rounded_up(buffer_bytes_); }  // behind a buffer's beginning
  std::byte* base() const { return base_; }
  std::byte* buffer(int index) const { return base_ + offset(index); }
  // With what another process, or this one, opens it on a device (Device::open). Throws DeviceError where that is not permitted.
  std::string address() const { return device_->share(base_); }

 private:
  static constexpr std::size_t kAlignment = 256;
  static std::size_t rounded_up(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
  std::size_t stride() const { return stamp_offset() + kAlignment; }

  const std::shared_ptr<Device> device_;
  const int buffers_;
  const std::size_t buffer_bytes_;
  std::byte* const base_;
};

}  // namespace wagma
