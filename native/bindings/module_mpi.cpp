// The Python module wagma._native_mpi: what needs MPI. Import mpi4py.MPI before it.
#include <mpi.h>
#include <pybind11/pybind11.h>

#include <string>

#include "wagma/transport_mpi.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_native_mpi, module) {
  module.doc() = "The parts of wagma's C++ kernel that call MPI.";
  py::module_::import("wagma._native");  // registers Transport, and the errors, for both modules

  module.def(
      "library_version",
      [] {
        char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
        int length = 0;
        MPI_Get_library_version(text, &length);
        return std::string(text, static_cast<std::size_t>(length));
      },
      "The text with which the MPI library that this module calls describes itself.");

  module.def(
      "connect",
      [](int fortran_handle, double timeout_s, std::size_t longest_message) {
        py::gil_scoped_release released;  // collective: it waits for the other ranks
        return wagma::MpiTransport::connect(MPI_Comm_f2c(static_cast<MPI_Fint>(fortran_handle)), timeout_s, longest_message);
      },
      py::arg("fortran_handle"), py::arg("timeout_s"), py::arg("longest_message") = wagma::kLongestMessage,
      "A transport over the communicator with this handle (mpi4py: comm.py2f()); collective.");
}
