// The ways in to the one implementation of Device. Its files, device/*.cpp, are compiled for two runtimes (runtime.hpp): by nvcc, as `-x cu`,
// for CUDA's, and by any compiler for the emulated one, together with device/emulated/*.cpp.
#pragma once

#include <memory>
#include <string>

#include "wagma/device.hpp"

namespace wagma {

namespace cuda {
// The device `index` among those that this process sees; the same object for all who ask while somebody has it. Throws DeviceError,
// which says what there is instead or why there is none.
std::shared_ptr<Device> make_device(int index);
int device_count() noexcept;    // 0 without a driver or a device
std::string why_no_device();  // one line; "" if there is a device
}  // namespace cuda

namespace emulated {  // the same; public as emulated_device() and emulated_devices()
std::shared_ptr<Device> make_device(int index);
int device_count() noexcept;
std::string why_no_device();
}  // namespace emulated

}  // namespace wagma
