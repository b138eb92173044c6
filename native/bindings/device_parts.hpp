// A model on a device, as Python holds it: class DeviceParts (bind_device.cpp), which engines take in place of an array (bind_engine.cpp).
#pragma once

#include <memory>
#include <utility>

#include "wagma/models.hpp"

namespace wagma {

class DeviceParts {
 public:
  DeviceParts(std::shared_ptr<Device> device, std::unique_ptr<Parts> parts) : device_(std::move(device)), parts_(std::move(parts)), model_{parts_.get(), 0} {}

  Parts& parts() { return *parts_; }
  const Parts& parts() const { return *parts_; }
  const std::shared_ptr<Device>& device() const { return device_; }
  Stream stream() const { return model_.stream; }
  void set_stream(Stream stream) { model_.stream = stream; }
  OnDevice* model() { return &model_; }  // what an engine reads as `own`

 private:
  const std::shared_ptr<Device> device_;  // the parts are a device's, and end before it
  const std::unique_ptr<Parts> parts_;
  OnDevice model_;
};

}  // namespace wagma
