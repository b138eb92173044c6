// The decision machine and the pure functions beside it, for tests that hold them against wagma/core. Outputs are plain
// tuples that begin with their kind: ("forward", version, dimension, rank), ("start", version, buffer, target, stamp, oldest),
// ("complete", version, fresh, merged_version, buffer), ("retracted", buffer, stamp, oldest), ("solo", version,
// dimension, rank).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "wagma/digest.hpp"
#include "wagma/protocol.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;

py::tuple tuple_of(const Output& output) {
  if (const auto* f = std::get_if<Forward>(&output))
    return py::make_tuple("forward", f->version, f->dimension, f->rank);
  if (const auto* s = std::get_if<Start>(&output)) {
    return py::make_tuple("start", s->version, s->buffer, s->target, s->stamp, s->oldest);
  }
  if (const auto* r = std::get_if<Retracted>(&output)) {
    return py::make_tuple("retracted", r->buffer, r->stamp, r->oldest);
  }
  if (const auto* s = std::get_if<Solo>(&output)) return py::make_tuple("solo", s->version, s->dimension, s->rank);
  const auto& c = std::get<Complete>(output);
  return py::make_tuple("complete", c.version, c.fresh, c.merged_version, c.buffer);
}

py::list list_of(const Outputs& outputs) {
  py::list list;
  for (const Output& output : outputs) list.append(tuple_of(output));
  return list;
}

// An event as a method: its outputs as a list of tuples.
template <class... Arguments>
auto event(Outputs (Machine::*method)(Arguments...)) {
  return [method](Machine& machine, Arguments... arguments) { return list_of((machine.*method)(arguments...)); };
}

std::string digest_of(const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) throw py::value_error("the buffer must be C-contiguous");
  char text[17];
  std::snprintf(text, sizeof text, "%016llx",
                static_cast<unsigned long long>(digest(info.ptr, static_cast<std::size_t>(info.size * info.itemsize))));
  return text;
}

}  // namespace

void register_protocol(py::module_& module) {
  using namespace py::literals;
  module.attr("NONE") = kNone;
  module.def(
      "group_of",
      [](int world_size, int group_size, Version iteration, int rank) {
        return py::tuple(py::cast(group_of(world_size, group_size, iteration, rank)));
      },
      "world_size"_a, "group_size"_a, "iteration"_a, "rank"_a,
      "The group of `rank` in `iteration`, in association order.");
  module.def(
      "association", [](int leaves) { return py::tuple(py::cast(association(leaves))); }, "leaves"_a,
      "The additions for `leaves` contributions, as pairs (into, from).");
  module.def("dimensions", &dimensions, "world_size"_a, "Number of dimensions of the activation trees.");
  module.def("neighbour", &neighbour, "world_size"_a, "rank"_a, "dimension"_a,
             "Where an activation over `dimension` goes.");
  module.def(
      "candidates",
      [](int world_size, int initiators, std::int64_t seed, Version version) {
        const Schedule schedule{.world_size = world_size, .initiators = initiators, .seed = seed};
        schedule.check();
        return schedule.candidates(version);
      },
      "world_size"_a, "initiators"_a, "seed"_a, "version"_a, "The ranks that may activate `version`, in ascending order.");
  module.def("digest", &digest_of, "buffer"_a, "16 hexadecimal digits for the bytes of a C-contiguous buffer.");

  py::class_<Machine>(module, "Machine", "The decision machine of one rank; wagma.core.protocol.Machine specifies it.")
      .def(py::init([](int rank, int world_size, int group_size, Version sync_period, bool grouped, bool merge_once,
                       bool fixed, int initiators, std::int64_t seed, bool accumulate, bool resident, Version begin) {
             const Schedule schedule{world_size, group_size, sync_period, grouped, fixed, initiators, seed, accumulate, begin};
             return Machine(rank, schedule, merge_once, resident);
           }),
           "rank"_a, "world_size"_a, "group_size"_a, "sync_period"_a, "grouped"_a = true, "merge_once"_a = false,
           "fixed"_a = false, "initiators"_a = 0, "seed"_a = 0, "accumulate"_a = false,
           "resident"_a = false, "begin"_a = 0)
      .def("arrive", event(&Machine::arrive), "version"_a)
      .def("activation", event(&Machine::activation), "version"_a, "dimension"_a)
      .def("solo", event(&Machine::solo), "version"_a, "dimension"_a)
      .def("exec_done", event(&Machine::exec_done), "version"_a)
      .def("read_done", event(&Machine::read_done))
      .def("merge_done", event(&Machine::merge_done))
      .def("retract", event(&Machine::retract))
      .def("close", event(&Machine::close))
      .def("finish", event(&Machine::finish), "version"_a)
      .def("restore", &Machine::restore, "state"_a)
      .def_property_readonly("state", [](const Machine& machine) { return py::tuple(py::cast(machine.state())); })
      .def_property_readonly("buffers", &Machine::buffers)
      .def_property_readonly("done", &Machine::done);
}
