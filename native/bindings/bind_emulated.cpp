// The application's stream on an emulated device, for Python: tests, and development without a GPU.
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "../device/emulated/application.hpp"
#include "bindings.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;
using unlocked = py::call_guard<py::gil_scoped_release>;

DType dtype_of(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument("dtype = " + name + ": must be float32, float64, float16 or bfloat16");
}

void sleep_for(EmulatedStream& stream, double seconds) {
  if (!(std::isfinite(seconds) && seconds >= 0)) throw std::invalid_argument("seconds = " + std::to_string(seconds) + ": must be at least 0");
  stream.sleep(seconds);
}

void fill(EmulatedStream& stream, std::uintptr_t address, std::size_t count, const std::string& dtype, double value) {
  if (address == 0 && count != 0) throw std::invalid_argument("address = 0: must be of " + std::to_string(count) + " elements");
  stream.fill(reinterpret_cast<void*>(address), count, dtype_of(dtype), value);
}

}  // namespace

void register_emulated(py::module_& module) {
  py::class_<EmulatedStream>(module, "EmulatedStream", "A stream of the application's on an emulated device. Nothing but synchronize() waits.")
      .def(py::init<int>(), py::arg("device") = 0)
      .def_property_readonly("handle", &EmulatedStream::handle)
      .def_property_readonly("device", &EmulatedStream::device)
      .def("sleep", &sleep_for, py::arg("seconds"), unlocked(), "What comes behind it begins so much later.")
      .def("fill", &fill, py::arg("address"), py::arg("count"), py::arg("dtype"), py::arg("value"), unlocked(),
           "`count` elements at `address` become `value`, rounded to `dtype`.")
      .def("fail", &EmulatedStream::fail, unlocked(),
           "As a kernel with an illegal access: this process's device answers every call with an error from then on.")
      .def("synchronize", &EmulatedStream::synchronize, unlocked(), "Waits for all that the stream was given.");
}
