// The explorer: every reachable state of a small case.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings.hpp"
#include "explorer_compare.hpp"
#include "options.hpp"

namespace py = pybind11;

namespace {

using namespace wagma::tools;
using Progress = std::optional<std::function<void(std::uint64_t, std::uint64_t)>>;

struct Arguments {
  wagma::Schedule schedule;
  std::vector<int> iterations;
  bool merge_once, resident;
  std::string mutation;

  Case config() const {
    schedule.check();
    if (static_cast<int>(iterations.size()) != schedule.world_size) throw UsageError("iterations: must be one for each rank");
    return {schedule, iterations, merge_once, mutation_of(mutation), resident};
  }
};

// Python is asked for Ctrl-C, and told of the progress, while the lock is held; the search goes on without it.
std::function<void(std::uint64_t, std::uint64_t)> with_lock(const Progress& progress) {
  return [progress](std::uint64_t states, std::uint64_t left) {
    const py::gil_scoped_acquire held;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(states, left);
  };
}

py::dict dict_of(const ExploreResult& result) {
  using namespace py::literals;
  return py::dict("states"_a = result.states, "transitions"_a = result.transitions, "quiet"_a = result.quiet,
                  "bytes"_a = result.bytes, "local_states"_a = result.local_states, "symmetries"_a = result.symmetries,
                  "complete"_a = result.complete, "not_reduced"_a = result.not_reduced, "violation"_a = result.violation,
                  "path"_a = result.path, "edges"_a = result.edges);
}

ExploreOptions options_of(std::uint64_t max_states, std::uint64_t max_bytes, bool symmetry, bool order, const Progress& progress) {
  ExploreOptions options;
  options.max_states = max_states;
  options.max_bytes = max_bytes;
  options.symmetry = symmetry;
  options.order = order;
  options.progress = with_lock(progress);
  return options;
}

py::dict explore_case(const Arguments& arguments, std::uint64_t max_states, std::uint64_t max_bytes, bool symmetry, bool order,
                      bool exact, const Progress& progress) {
  ExploreOptions options = options_of(max_states, max_bytes, symmetry, order, progress);
  options.exact = exact;
  ExploreResult result;
  {
    const py::gil_scoped_release released;
    result = explore(arguments.config(), options);
  }
  return dict_of(result);
}

py::dict cross_check(const Arguments& arguments, std::uint64_t max_states, std::uint64_t max_bytes, bool symmetry, bool order,
                     bool exact, const Progress& progress) {
  const ExploreOptions reduced = options_of(max_states, max_bytes, symmetry, order, progress);
  ExploreOptions all = options_of(max_states, max_bytes, false, false, progress);
  all.exact = exact;
  Comparison found;
  {
    const py::gil_scoped_release released;
    found = compare(arguments.config(), reduced, all);
  }
  using namespace py::literals;
  return py::dict("states"_a = found.all.states, "reduced_states"_a = found.reduced.states, "quiet"_a = found.quiet,
                  "reduced_quiet"_a = found.reduced_quiet, "edges"_a = found.edges, "reduced_edges"_a = found.reduced_edges,
                  "difference"_a = found.difference, "violation"_a = found.all.violation,
                  "complete"_a = found.all.complete && found.reduced.complete);
}

}  // namespace

void register_explore(py::module_& module) {
  using namespace py::literals;
  py::register_exception<UsageError>(module, "UsageError", PyExc_ValueError);
  py::class_<Arguments>(module, "ExploreCase", "What is explored: a schedule, each rank's iterations, and what its machine is told.")
      .def(py::init([](int ranks, int group_size, wagma::Version sync_period, const std::vector<int>& iterations, bool grouped,
                       bool accumulate, int initiators, std::int64_t seed, bool merge_once, bool resident, const std::string& mutation) {
             return Arguments{{.world_size = ranks,
                               .group_size = group_size,
                               .sync_period = sync_period,
                               .grouped = grouped,
                               .initiators = initiators,
                               .seed = seed,
                               .accumulate = accumulate},
                              iterations, merge_once, resident, mutation};
           }),
           "ranks"_a, "group_size"_a, "sync_period"_a, "iterations"_a, py::kw_only(), "grouped"_a = true, "accumulate"_a = false,
           "initiators"_a = 0, "seed"_a = 0, "merge_once"_a = false, "resident"_a = false, "mutation"_a = "none");
  module.def("explore", &explore_case, "case"_a, py::kw_only(), "max_states"_a = 0, "max_bytes"_a = std::uint64_t{4} << 30,
             "symmetry"_a = true, "order"_a = true, "exact"_a = false, "progress"_a = py::none(),
             "Every reachable state; progress(states, left) is called now and then.");
  module.def("cross_check", &cross_check, "case"_a, py::kw_only(), "max_states"_a = 0, "max_bytes"_a = std::uint64_t{4} << 30,
             "symmetry"_a = true, "order"_a = true, "exact"_a = false, "progress"_a = py::none(),
             "The reduced search held against the search of all states.");
}
