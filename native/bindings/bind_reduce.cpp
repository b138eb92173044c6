// The kernel's sums, means and merges, for tests that hold them against wagma/core. numpy has no bfloat16: arrays of uint16 are its
// bits.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings.hpp"
#include "wagma/reduce.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;
using Optional = std::optional<py::array>;

DType dtype_of(const py::array& array) {
  if (array.dtype().equal(py::dtype::of<float>())) return DType::float32;
  if (array.dtype().equal(py::dtype::of<double>())) return DType::float64;
  if (array.dtype().equal(py::dtype("float16"))) return DType::float16;
  if (array.dtype().equal(py::dtype::of<std::uint16_t>())) return DType::bfloat16;
  throw py::type_error("dtype must be float32, float64, float16 or uint16 (the bits of bfloat16)");
}

py::dtype sums_dtype(DType dtype) { return dtype == DType::float64 ? py::dtype::of<double>() : py::dtype::of<float>(); }

// What the kernel may read as elements of `dtype` in the shape of `like`; anything else would be reinterpreted.
const void* elements_of(const py::array& array, const py::dtype& dtype, const py::array& like) {
  if (!(array.flags() & py::array::c_style) || array.size() != like.size() || !array.dtype().equal(dtype)) {
    throw py::value_error("arrays must be C-contiguous and equal in size and dtype");
  }
  return array.data();
}

py::array empty_like(const py::array& like, const py::dtype& dtype) {
  return py::array(dtype, std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
}

std::vector<py::array> reduced(const std::vector<Optional>& contributions, const std::vector<int>& divisors, bool streaming) {
  const py::array* first = nullptr;
  for (const Optional& array : contributions) {
    if (array && !first) first = &*array;
  }
  if (!first) throw py::value_error("a reduction of no arrays");
  const DType dtype = dtype_of(*first);
  std::vector<const void*> sources;
  for (const Optional& array : contributions) {
    sources.push_back(array ? elements_of(*array, first->dtype(), *first) : nullptr);
  }
  std::vector<py::array> results;
  std::vector<void*> targets;
  for (const int divisor : divisors) {
    if (divisor < 1) throw py::value_error("a divisor must be 1 or more");
    results.push_back(empty_like(*first, divisor == 1 ? sums_dtype(dtype) : first->dtype()));
    targets.push_back(results.back().mutable_data());
  }
  reduce(dtype, sources.data(), static_cast<int>(sources.size()), targets.data(), divisors.data(), static_cast<int>(targets.size()),
         static_cast<std::size_t>(first->size()), streaming ? Stores::streaming : Stores::cached);
  return results;
}

py::array sum_of(const std::vector<Optional>& contributions) { return reduced(contributions, {1}, false).front(); }

py::array merged(const Optional& total, const py::array& own, int own_weight, int divisor) {
  const DType dtype = dtype_of(own);
  const void* const source = elements_of(own, own.dtype(), own);
  const void* const sum = total ? elements_of(*total, sums_dtype(dtype), own) : nullptr;
  py::array result = empty_like(own, own.dtype());
  merge_into(dtype, result.mutable_data(), source, sum, own_weight, divisor, static_cast<std::size_t>(own.size()));
  return result;
}

py::array added(const py::array& taken, const py::array& own) {
  const DType dtype = dtype_of(own);
  py::array result = empty_like(own, own.dtype());
  const auto count = static_cast<std::size_t>(own.size());
  copy(result.mutable_data(), elements_of(own, own.dtype(), own), count * item_size(dtype), Stores::cached);
  add_into(dtype, result.mutable_data(), elements_of(taken, own.dtype(), own), count);
  return result;
}

}  // namespace

void register_reduce(py::module_& module) {
  using namespace py::literals;
  module.def("reduce", &reduced, "contributions"_a, "divisors"_a, "streaming"_a = false,
             "For each divisor the sum along the association tree (1: in the accumulation type), or the mean; None counts as zeros.");
  module.def("tree_sum", &sum_of, "contributions"_a, "Sum along the association tree, in the accumulation type.");
  module.def("merge", &merged, py::arg("total").none(true), "own"_a, "own_weight"_a, "divisor"_a,
             "(total + own_weight * own) / divisor; total, in the accumulation type, may be None: nothing to merge.");
  module.def("add", &added, "taken"_a, "own"_a, "taken + own in the accumulation type, rounded once.");
}
