// The Python module wagma._native_cuda: NVIDIA's GPUs, if nvcc could compile native/device. It is there in any case, and says why if not.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cuda_build.hpp"
#include "device.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;

py::tuple architectures() {
  py::list found;
  std::istringstream codes(cuda::kCodes);
  for (std::string code; codes >> code;) found.append(code);
  return py::tuple(found);
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  using unlocked = py::call_guard<py::gil_scoped_release>;  // the driver's first call takes seconds
  module.doc() = "The devices of wagma's C++ kernel that CUDA drives.";
  py::module_::import("wagma._native");  // registers Device, and the errors, for both modules
  module.attr("why_not") = cuda::kWhyNot == nullptr ? py::object(py::none()) : py::object(py::str(cuda::kWhyNot));
  module.attr("architectures") = architectures();

  module.def("devices", &cuda::device_count, unlocked(), "How many devices this process sees; 0 without a driver.");
  module.def("device", &cuda::make_device, py::arg("index"), unlocked(), "One of them; raises DeviceError.");
  // Attributes that are not there when the module is imported, since that must not start a driver.
  module.def("__getattr__", [](const std::string& name) {
    if (name != "why_no_device") throw py::attribute_error("module 'wagma._native_cuda' has no attribute '" + name + "'");
    py::gil_scoped_release unlock;
    return cuda::why_no_device();
  });
}
