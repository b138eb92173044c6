// The Python module wagma._proof: the explorer and the fuzzer of native/tools, for the commands `wagma explore` and `wagma fuzz`.
#include <pybind11/pybind11.h>

#include "bindings.hpp"

PYBIND11_MODULE(_proof, module) {
  module.doc() = "The checks of wagma's protocol: every state of small cases, and random runs of larger ones.";
  register_explore(module);
  register_fuzz(module);
}
