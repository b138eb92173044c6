// The Python module wagma._native_mpi: what needs MPI. Import mpi4py.MPI before it.
#include <mpi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "wagma/device_buffers.hpp"
#include "wagma/transport_mpi.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;

// Whose interface mpi.h has. A library's functions can be found under the same names by a module that was built against the other
// (Open MPI makes its own visible to all), and its handles mean nothing there: library_version() alone would not tell.
#if defined(OPEN_MPI)
constexpr const char* kBuiltAgainst = "Open MPI";
#elif defined(MPICH_VERSION) || defined(I_MPI_VERSION)
constexpr const char* kBuiltAgainst = "MPICH";
#else
constexpr const char* kBuiltAgainst = "";
#endif

DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument("dtype = " + name + ": must be float32, float64, float16 or bfloat16");
}

// Polls until `done` says so, as an engine would. Throws CollectiveTimeout.
template <class Done>
void poll(MpiTransport& transport, double timeout_s, const char* what, Done done) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
  while (!done()) {
    if (Clock::now() >= deadline) {
      std::string text = "rank " + std::to_string(transport.rank()) + ": " + what + " is not over after " + std::to_string(timeout_s) +
                         " s; lacks ranks";
      for (const int rank : transport.missing()) text += " " + std::to_string(rank);
      throw CollectiveTimeout(text);
    }
    transport.pause({});
  }
}

// One execution without an engine: buffer `contribution` (-1: the null contribution) into buffer `target`.
void exchange(MpiTransport& transport, Version version, const Group& members, int contribution, int target, std::size_t count,
              const std::string& dtype, int divisor, double timeout_s, Version stamp) {
  const auto own = std::find(members.begin(), members.end(), transport.rank());
  Execution execution;
  execution.version = version;
  execution.stamp = stamp;
  execution.members = members;
  execution.index = static_cast<int>(own - members.begin());
  execution.count = count;
  execution.dtype = dtype_named(dtype);
  execution.divisor = divisor;
  const bool fits = count > 0 && count * accumulator_size(execution.dtype) <= transport.buffer_bytes();
  if (own == members.end() || !fits || target < 0 || std::max(contribution, target) >= transport.buffers() || contribution == target) {
    throw std::invalid_argument("rank " + std::to_string(transport.rank()) +
                                ": exchange: must be among the members, with two buffers that are long enough");
  }
  execution.contribution = contribution < 0 ? nullptr : transport.buffer(contribution);
  execution.target = transport.buffer(target);
  transport.begin(execution);
  poll(transport, timeout_s, "the exchange", [&] { return transport.progress().released; });
}

py::array_t<std::uint8_t> buffer(const std::shared_ptr<MpiTransport>& transport, int index) {
  if (index < 0 || index >= transport->buffers()) {
    throw std::invalid_argument("index = " + std::to_string(index) + ": must be from 0 to " + std::to_string(transport->buffers() - 1));
  }
  const DeviceBuffers* device = transport->device_buffers();
  if (device && std::string(device->device()->kind()) != "emulated") {
    throw std::invalid_argument("buffer " + std::to_string(index) + " is in the memory of " + device->device()->name() +
                                ": copy it with Device.copy");
  }
  auto* bytes = reinterpret_cast<std::uint8_t*>(transport->buffer(index));
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(transport->buffer_bytes()), bytes, py::cast(transport));
}

std::string library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

std::shared_ptr<MpiTransport> connect(int fortran_handle, int buffers, std::size_t buffer_bytes, double timeout_s,
                                      double longest_nap_s, std::shared_ptr<DeviceBuffers> device_buffers) {
  return MpiTransport::connect(MPI_Comm_f2c(static_cast<MPI_Fint>(fortran_handle)),
                               {buffers, buffer_bytes, timeout_s, longest_nap_s, std::move(device_buffers)});
}

}  // namespace

PYBIND11_MODULE(_native_mpi, module) {
  using unlocked = py::call_guard<py::gil_scoped_release>;  // for what waits for other ranks
  module.doc() = "The parts of wagma's C++ kernel that call MPI.";
  py::module_::import("wagma._native");  // registers Transport, and the errors, for both modules
  module.attr("built_against") = kBuiltAgainst;

  module.def("library_version", &library_version, "The text with which the MPI library that this module calls describes itself.");
  module.def("connect", &connect, py::arg("fortran_handle"), py::arg("buffers"), py::arg("buffer_bytes"), py::arg("timeout_s"),
             py::arg("longest_nap_s") = MpiOptions{}.longest_nap_s, py::arg("device_buffers") = py::none(), unlocked(),
             "A transport over the communicator with this handle (mpi4py: comm.py2f()); collective. device_buffers: on a device whose memory"
             " the library takes, of that number and size.");
  module.def("cuda_support", &cuda_support, "Whether the MPI library says that it takes memory of CUDA devices. After MPI_Init.");

  py::class_<MpiTransport, Transport, std::shared_ptr<MpiTransport>>(
      module, "MpiTransport", "Ranks as MPI processes. An engine uses it; the methods are for tests and measurements without one.")
      .def_property_readonly("scratch_bytes", &MpiTransport::scratch_bytes, "What exchanges hold beyond the buffers.")
      .def_property_readonly("additions", &MpiTransport::additions, "How many sums this rank has made.")
      .def("buffer", &buffer, py::arg("index"), "A buffer of this rank in host memory or on an emulated device, as bytes.")
      .def("exchange", &exchange, py::arg("version"), py::arg("members"), py::arg("contribution"), py::arg("target"), py::arg("count"),
           py::arg("dtype"), py::arg("divisor"), py::arg("timeout_s"), py::arg("stamp") = Version{-1}, unlocked(),
           "One execution: buffer `contribution` (-1: none, zeros), published for version `stamp`, into buffer `target`.")
      .def(
          "leave",
          [](MpiTransport& transport, double timeout_s) { poll(transport, timeout_s, "leaving", [&] { return transport.drain(); }); },
          py::arg("timeout_s"), unlocked(), "End in order; collective.");
}
