// Devices for Python: their memory, models that lie there (DeviceParts), and buffers of transports that do (DeviceBuffers).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "device_parts.hpp"
#include "wagma/device_buffers.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;
using unlocked = py::call_guard<py::gil_scoped_release>;  // for what waits for a device, or may

constexpr double kLimit_s = 300.0;  // of what waits here

DType dtype_of(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument("dtype = " + name + ": must be float32, float64, float16 or bfloat16");
}

std::byte* at(std::uintptr_t address) { return reinterpret_cast<std::byte*>(address); }
std::uintptr_t address_of(const std::byte* data) { return reinterpret_cast<std::uintptr_t>(data); }

// Queues for the calls below that wait. To make one takes longer than many a copy, so they are kept, with their devices, until the process
// ends; each is one call's at a time.
class Errand {
 public:
  explicit Errand(const std::shared_ptr<Device>& device) : device_(device.get()) {
    {
      std::lock_guard lock(pool().mutex);
      auto& idle = pool().idle[device_];
      if (!idle.empty()) {
        queue_ = std::move(idle.back());
        idle.pop_back();
      }
    }
    if (!queue_) queue_ = device->queue(false);
  }
  // Without it, after an error, the queue ends here.
  void wait() {
    queue_->wait(queue_->mark(), kLimit_s);
    std::lock_guard lock(pool().mutex);
    pool().idle[device_].push_back(std::move(queue_));
  }
  Queue* operator->() { return queue_.get(); }

 private:
  struct Pool {
    std::mutex mutex;
    std::map<Device*, std::vector<std::unique_ptr<Queue>>> idle;  // a queue keeps its device, so no other one gets its address
  };
  static Pool& pool() {
    static Pool* const only = new Pool;  // never destroyed: a device's driver may have ended before
    return *only;
  }

  Device* const device_;
  std::unique_ptr<Queue> queue_;
};

void copy_and_wait(const std::shared_ptr<Device>& device, std::uintptr_t to, std::uintptr_t from, std::size_t bytes, Stream stream) {
  Errand errand(device);
  errand->follow(stream);
  errand->copy(at(to), at(from), bytes);
  errand.wait();
}

void synchronize(const std::shared_ptr<Device>& device, Stream stream) {
  Errand errand(device);
  errand->follow(stream);
  errand.wait();
}

void publish(const std::shared_ptr<Device>& device, const DeviceParts& parts, std::uintptr_t to) {
  Errand errand(device);
  errand->follow(parts.stream());
  errand->publish(parts.parts(), 0, parts.parts().count(), at(to), nullptr, 0);
  errand.wait();
}

using Tensor = std::tuple<std::uintptr_t, std::size_t, std::string>;

std::unique_ptr<DeviceParts> parts(const std::shared_ptr<Device>& device, const std::string& dtype, const std::vector<Tensor>& tensors) {
  std::vector<Part> all;
  all.reserve(tensors.size());
  for (const auto& [address, count, name] : tensors) all.push_back({at(address), count, dtype_of(name)});
  return std::make_unique<DeviceParts>(device, device->parts(dtype_of(dtype), all));
}

void place(DeviceParts& parts, const std::vector<std::uintptr_t>& addresses) {
  std::vector<void*> all;
  all.reserve(addresses.size());
  for (const std::uintptr_t address : addresses) all.push_back(at(address));
  parts.parts().place(all);
}

}  // namespace

void register_device(py::module_& module) {
  py::class_<Device, std::shared_ptr<Device>>(module, "Device", "A GPU, or an emulated one. Addresses are numbers; 0 is the default stream.")
      .def_property_readonly("kind", &Device::kind)
      .def_property_readonly("index", &Device::index)
      .def_property_readonly("name", &Device::name)
      .def_property_readonly("identity", &Device::identity, "The same for all who use this very device.")
      .def(
          "memory",
          [](const Device& device) {
            const Device::Memory memory = device.memory();
            return std::make_pair(memory.free, memory.total);
          },
          unlocked(), "Bytes that are free, and in all.")
      .def("parts", &parts, py::arg("dtype"), py::arg("tensors"), unlocked(),
           "A model of that dtype out of tensors: (address, 0: none; elements; dtype).")
      .def(
          "allocate", [](Device& device, std::size_t bytes) { return address_of(device.allocate(bytes)); }, py::arg("bytes"), unlocked(),
          "The address of zeros; raises OutOfDeviceMemory.")
      .def("release", [](Device& device, std::uintptr_t address) { device.release(at(address)); }, py::arg("address"), unlocked())
      .def(
          "allocate_host", [](Device& device, std::size_t bytes) { return address_of(device.allocate_host(bytes)); }, py::arg("bytes"),
          unlocked(), "The same, pinned, of the host.")
      .def("release_host", [](Device& device, std::uintptr_t address) { device.release_host(at(address)); }, py::arg("address"), unlocked())
      .def("copy", &copy_and_wait, py::arg("to"), py::arg("from_"), py::arg("bytes"), py::arg("stream") = Stream{0}, unlocked(),
           "Behind what the stream was given; waits for it.")
      .def("synchronize", &synchronize, py::arg("stream") = Stream{0}, unlocked(), "Waits for what the stream was given.")
      .def("publish", &publish, py::arg("parts"), py::arg("to"), unlocked(), "As engines do, to that address; waits for it.");
  module.def("emulated_device", &emulated_device, py::arg("index") = 0, unlocked(), "One of them; raises DeviceError.");
  module.def("emulated_devices", &emulated_devices, "How many there are.");

  py::class_<DeviceParts>(module, "DeviceParts", "A model on a device, and the stream in whose order the application works on it.")
      .def_property_readonly("count", [](const DeviceParts& parts) { return parts.parts().count(); })
      .def_property_readonly("dtype", [](const DeviceParts& parts) { return dtype_name(parts.parts().dtype()); })
      .def_property("stream", &DeviceParts::stream, &DeviceParts::set_stream)
      .def("place", &place, py::arg("addresses"), unlocked(), "Where the same tensors are now, in order. Not while an engine works on them.");

  py::class_<DeviceBuffers, std::shared_ptr<DeviceBuffers>>(module, "DeviceBuffers", "The buffers of a rank whose models stay on its device.")
      .def(py::init<std::shared_ptr<Device>, int, std::size_t>(), py::arg("device"), py::arg("buffers"), py::arg("buffer_bytes"), unlocked(),
           "Raises OutOfDeviceMemory.")
      .def_property_readonly(
          "address",
          [](const DeviceBuffers& buffers) {
            py::gil_scoped_release unlock;
            return buffers.address();
          },
          "With what others open them; raises DeviceError where that is not permitted.")
      .def_property_readonly("stamp_offset", &DeviceBuffers::stamp_offset, "Of a buffer's stamp, from its beginning.");
}
