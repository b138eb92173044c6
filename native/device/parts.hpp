// The tensors of a model, in a table in the device's memory.
#pragma once

#include <memory>
#include <vector>

#include "kernels.hpp"
#include "runtime_device.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

class RuntimeParts final : public Parts {
 public:
  RuntimeParts(std::shared_ptr<RuntimeDevice> device, DType model, const std::vector<Part>& tensors);
  ~RuntimeParts() override;

  DType dtype() const override { return model_; }
  std::size_t count() const override { return count_; }
  void place(const std::vector<void*>& data) override;

  const PartsTable& table() const { return table_; }
  const RuntimeDevice& device() const { return *device_; }
  // What `stream` is given from now on begins after the table has come to the device.
  void ready_for(cudaStream_t stream) const;

 private:
  void write_addresses(const std::vector<void*>& data);
  bool uploaded() const;

  const std::shared_ptr<RuntimeDevice> device_;
  const DType model_;
  std::vector<std::size_t> sizes_;  // of an item of each part
  std::size_t count_ = 0;
  PartsTable table_;  // points into on_device_, in which lie: ends, addresses, dtypes
  RuntimeDevice::Piece staged_, on_device_;
  cudaEvent_t placed_ = nullptr;  // behind the last upload
};

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
