// The Python module wagma._native_mpi: what needs MPI. Import mpi4py.MPI before it.
#include <mpi.h>
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

PYBIND11_MODULE(_native_mpi, module) {
  module.doc() = "The parts of wagma's C++ kernel that call MPI.";

  module.def(
      "library_version",
      [] {
        char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
        int length = 0;
        MPI_Get_library_version(text, &length);
        return std::string(text, static_cast<std::size_t>(length));
      },
      "The text with which the MPI library that this module calls describes itself.");
}
