// The Python module wagma._native: each part of the kernel registers itself in a file of its own.
#include <pybind11/pybind11.h>

#include "bindings.hpp"
#include "wagma/version.hpp"

PYBIND11_MODULE(_native, module) {
  module.doc() = "The C++ kernel of wagma.";
  module.attr("__version__") = wagma::version();
  register_device(module);
  register_transport(module);
  register_engine(module);
  register_protocol(module);
  register_reduce(module);
  register_emulated(module);
}
