#include "parts.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "waiting.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

namespace {

constexpr double kUploadLimit = 10.0;  // seconds, for some kilobytes

}  // namespace

RuntimeParts::RuntimeParts(std::shared_ptr<RuntimeDevice> device, DType model, const std::vector<Part>& tensors)
    : device_(std::move(device)), model_(model) {
  const Current current(device_->index(), device_->label());
  const std::size_t n = tensors.size();
  for (std::size_t i = 0; i < n; ++i) {
    if (!can_hold(model, tensors[i].dtype)) {
      throw std::invalid_argument("tensor " + std::to_string(i) + " is " + dtype_name(tensors[i].dtype) + ": a model of " + dtype_name(model) +
                                  " does not hold all of its values");
    }
  }
  staged_ = device_->take(n * 17, false);
  on_device_ = device_->take(n * 17, true);
  auto* const ends = reinterpret_cast<std::uint64_t*>(staged_.data);
  auto* const dtypes = reinterpret_cast<std::uint8_t*>(staged_.data + n * 16);
  std::vector<void*> data;
  for (std::size_t i = 0; i < n; ++i) {
    count_ += tensors[i].count;
    ends[i] = count_;
    dtypes[i] = static_cast<std::uint8_t>(tensors[i].dtype);
    table_.alike = table_.alike && tensors[i].dtype == model;
    sizes_.push_back(item_size(tensors[i].dtype));
    data.push_back(tensors[i].data);
  }
  table_.ends = reinterpret_cast<const std::uint64_t*>(on_device_.data);
  table_.data = reinterpret_cast<void* const*>(on_device_.data + n * 8);
  table_.dtypes = reinterpret_cast<const std::uint8_t*>(on_device_.data + n * 16);
  table_.parts = static_cast<std::uint32_t>(n);
  try {
    write_addresses(data);
    check(cudaEventCreateWithFlags(&placed_, cudaEventDisableTiming), device_->label(), "cudaEventCreateWithFlags");
    device_->upload(on_device_.data, staged_.data, n * 17, placed_);
  } catch (...) {
    if (placed_ != nullptr) succeeds(cudaEventDestroy(placed_));
    device_->give(staged_);
    device_->give(on_device_);
    throw;
  }
}

RuntimeParts::~RuntimeParts() {
  with_device(device_->index(), [&] {
    // What is still being copied must not be given to others; on a device that does not even manage that, it is left where it is.
    bool over = false;
    try {
      over = wait_until(kUploadLimit, [&] { return uploaded(); });
    } catch (const DeviceError&) {
    }
    if (over) {
      device_->give(staged_);
      device_->give(on_device_);
    }
    return succeeds(cudaEventDestroy(placed_));
  });
}

void RuntimeParts::write_addresses(const std::vector<void*>& data) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    if (reinterpret_cast<std::uintptr_t>(data[i]) % sizes_[i] == 0) continue;
    throw std::invalid_argument("tensor " + std::to_string(i) + ": its address must be a multiple of " + std::to_string(sizes_[i]) + " bytes");
  }
  if (!data.empty()) std::memcpy(staged_.data + data.size() * 8, data.data(), data.size() * 8);
}

void RuntimeParts::place(const std::vector<void*>& data) {
  if (data.size() != sizes_.size()) {
    throw std::invalid_argument(std::to_string(data.size()) + " addresses: must be " + std::to_string(sizes_.size()) + ", one for each tensor");
  }
  if (data.empty()) return;
  const Current current(device_->index(), device_->label());
  // The last upload reads what is about to be overwritten; usually it is long over.
  if (!wait_until(kUploadLimit, [&] { return uploaded(); })) {
    throw DeviceError("device " + device_->label() + ": a table of " + std::to_string(data.size()) + " addresses was not copied within 10 s");
  }
  write_addresses(data);
  device_->upload(on_device_.data + data.size() * 8, staged_.data + data.size() * 8, data.size() * 8, placed_);
}

bool RuntimeParts::uploaded() const {
  const cudaError_t code = cudaEventQuery(placed_);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(code, device_->label(), "cudaEventQuery");
  return true;
}

void RuntimeParts::ready_for(cudaStream_t stream) const {
  check(cudaStreamWaitEvent(stream, placed_, 0), device_->label(), "cudaStreamWaitEvent");
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
