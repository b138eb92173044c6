#include "wagma/device_buffers.hpp"

#include <stdexcept>
#include <utility>

namespace wagma {

namespace {
int at_least_one(int buffers) {
  if (buffers >= 1) return buffers;
  throw std::invalid_argument("buffers = " + std::to_string(buffers) + ": must be at least 1");
}
}  // namespace

DeviceBuffers::DeviceBuffers(std::shared_ptr<Device> device, int buffers, std::size_t buffer_bytes)
    : device_(std::move(device)),
      buffers_(at_least_one(buffers)),
      buffer_bytes_(buffer_bytes),
      base_(device_->allocate(stride() * static_cast<std::size_t>(buffers_))) {}

DeviceBuffers::~DeviceBuffers() { device_->release(base_); }

}  // namespace wagma
