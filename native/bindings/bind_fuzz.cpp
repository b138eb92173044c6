// The fuzzer: seeded runs under hostile timing; and what a seed draws, for the simulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "fuzzer.hpp"

namespace py = pybind11;

namespace {

using namespace wagma::tools;
using namespace py::literals;

// Called without the GIL, after each seed and each attempt to shrink: a few times a second it lets signals through and calls back. What
// Python raises there is an exception here, which ends the work.
class Reports {
 public:
  explicit Reports(const py::object& callback) : callback_(callback) {}

  void operator()(std::uint64_t runs) {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + std::chrono::milliseconds(100);
    const py::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!callback_.is_none()) callback_(runs);
  }

 private:
  const py::object& callback_;
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now();
};

py::dict dict_of(const Counts& c) {
  return py::dict("events"_a = c.events, "starts"_a = c.starts, "passive"_a = c.passive, "completions"_a = c.completions, "late"_a = c.late,
                  "quiet"_a = c.quiet, "sums"_a = c.sums, "nulls"_a = c.nulls, "activations"_a = c.activations,
                  "overtaken"_a = c.overtaken, "batched"_a = c.batched, "far"_a = c.far, "behind"_a = c.behind, "wide"_a = c.wide);
}

py::dict dict_of(const FuzzFailure& failure) {
  return py::dict("seed"_a = failure.seed, "violation"_a = failure.found.message, "case"_a = failure.config,
                  "events"_a = failure.found.events, "shrunk_violation"_a = failure.shrunk.message, "shrunk_case"_a = failure.shrunk_config,
                  "trace"_a = failure.trace, "attempts"_a = failure.attempts);
}

std::string hexadecimal(std::uint64_t number) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

py::dict run_fuzz(std::uint64_t first, std::uint64_t seeds, const std::string& mutation, const py::object& progress) {
  Reports reports(progress);
  FuzzOptions options;
  options.first = first;
  options.seeds = seeds;
  options.leaks = mutation == kUnseeded;
  options.mutation = options.leaks ? Mutation::none : mutation_of(mutation);
  options.progress = [&reports](std::uint64_t runs) { reports(runs); };
  FuzzResult result;
  {
    const py::gil_scoped_release released;
    result = fuzz(options);
  }
  py::dict found("seeds"_a = result.runs, "counts"_a = dict_of(result.counts), "digest"_a = hexadecimal(result.digest));
  found["failure"] = result.failure ? py::object(dict_of(*result.failure)) : py::none();
  return found;
}

// The application's times and all that the simulator has settings for.
py::dict drawn(std::uint64_t seed) {
  const Plan plan = draw_plan(seed, Mutation::none, false);
  const wagma::Schedule& schedule = plan.config.schedule;
  std::vector<std::vector<Ticks>> computes;
  int most = 0;
  for (const int iterations : plan.config.iterations) most = std::max(most, iterations);
  for (int rank = 0; rank < schedule.world_size; ++rank) {
    computes.emplace_back();
    for (wagma::Version version = 0; version < most; ++version) {
      computes.back().push_back(plan.drawn(rank, Event::arrive, key_of(rank, Event::arrive, version, -1)).ticks);
    }
  }
  Ticks look = 0;
  for (const Looks& looks : plan.looks) look = std::max(look, looks.period);
  return py::dict("ranks"_a = schedule.world_size, "group_size"_a = schedule.group_size, "sync_period"_a = schedule.sync_period,
                  "grouped"_a = schedule.grouped, "fixed"_a = schedule.fixed, "merge_once"_a = plan.config.merge_once,
                  "accumulate"_a = schedule.accumulate, "initiators"_a = schedule.initiators, "computes"_a = computes,
                  "activation"_a = Ticks{1} << plan.scale[Event::activation], "latency"_a = Ticks{1} << plan.scale[Event::exec_done],
                  "look"_a = look, "case"_a = text_of(plan.config));
}

// One run, for the Python machines to go through the same: what happens to each, and what it answers.
py::dict run_log(std::uint64_t seed) {
  const Plan plan = draw_plan(seed, Mutation::none, false);
  const wagma::Schedule& schedule = plan.config.schedule;
  Log log;
  Counts counts;
  Run(plan, counts, log).run();
  py::list events, lines;
  for (std::size_t i = 0; i < log.size(); ++i) {
    events.append(log.words(i));
    lines.append(log.text(i));
  }
  const py::dict settings("world_size"_a = schedule.world_size, "group_size"_a = schedule.group_size,
                          "sync_period"_a = schedule.sync_period, "grouped"_a = schedule.grouped, "fixed"_a = schedule.fixed,
                          "initiators"_a = schedule.initiators, "seed"_a = schedule.seed, "accumulate"_a = schedule.accumulate,
                          "begin"_a = schedule.begin);
  py::list kinds;
  for (int kind = 0; kind < Event::kKinds; ++kind) kinds.append(Event::name(static_cast<Event::Kind>(kind)));
  return py::dict("schedule"_a = settings, "merge_once"_a = plan.config.merge_once, "resident"_a = plan.config.resident,
                  "case"_a = text_of(plan.config), "kinds"_a = kinds, "events"_a = events, "lines"_a = lines,
                  "states"_a = log.states());
}

}  // namespace

void register_fuzz(py::module_& module) {
  module.def("fuzz", &run_fuzz, "first"_a, "seeds"_a, "mutation"_a = "none", "progress"_a = py::none());
  module.def("drawn", &drawn, "seed"_a);
  module.def("log", &run_log, "seed"_a);
  py::list names;
  for (const auto& [name, mutation] : mutations()) names.append(name);
  names.append(kUnseeded);
  module.attr("MUTATIONS") = py::tuple(names);
}
