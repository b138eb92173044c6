// Engine, transports and what they throw, for Python. Everything that waits or copies releases the GIL: the other Python
// threads of the process, ranks of a local hub among them, have to run meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <thread>

#include "bindings.hpp"
#include "wagma/engine.hpp"
#include "wagma/transport_local.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;

[[noreturn]] void raise_python(const char* type, const std::string& message) {
  py::set_error(py::module_::import("wagma.errors").attr(type), message.c_str());
  throw py::error_already_set();
}

void translate(std::exception_ptr exception) {
  const auto set = [](const char* type, const std::exception& error) {
    py::set_error(py::module_::import("wagma.errors").attr(type), error.what());
  };
  try {
    std::rethrow_exception(exception);
  } catch (const CollectiveTimeout& error) {
    set("CollectiveTimeout", error);
  } catch (const PeerFailed& error) {
    set("PeerFailed", error);
  } catch (const ProtocolError& error) {
    set("ProtocolError", error);
  } catch (const TransportError& error) {
    set("WagmaError", error);
  }
}

// The dtype of a model. Anything but the machine's own float32 and float64 would be reinterpreted, so it is refused.
DType dtype_of(const py::array& array) {
  if (array.dtype().is(py::dtype::of<float>()) || array.dtype().equal(py::dtype::of<float>())) return DType::float32;
  if (array.dtype().equal(py::dtype::of<double>())) return DType::float64;
  raise_python("InputError", "dtype = " + py::str(array.dtype()).cast<std::string>() + ": must be float32 or float64");
}

void check_layout(const py::array& array) {
  if (array.ndim() != 1 || !(array.flags() & py::array::c_style)) {
    raise_python("InputError", "the model is not a 1-D C-contiguous array: it has " + std::to_string(array.ndim()) +
                                   " dimensions" + (array.flags() & py::array::c_style ? "" : " and gaps"));
  }
}

void check_like(const Engine& engine, const py::array& array) {
  check_layout(array);
  const EngineConfig& config = engine.config();
  if (dtype_of(array) != config.dtype || static_cast<std::size_t>(array.size()) != config.count) {
    raise_python("InputError", "the model has " + std::to_string(array.size()) + " elements of " +
                                   py::str(array.dtype()).cast<std::string>() + ": the engine was made for " +
                                   std::to_string(config.count) + " of " +
                                   (config.dtype == DType::float64 ? "float64" : "float32"));
  }
}

void* writable(const Engine& engine, py::array& array) {
  check_like(engine, array);
  if (!array.writeable()) raise_python("InputError", "the model is read-only: the average cannot be written into it");
  return array.mutable_data();
}

// The thread that imports this module first; Python runs signal handlers in its main thread only.
const std::thread::id python_thread = std::this_thread::get_id();

// Lets Python see its signals while the application waits: Ctrl-C ends the wait with KeyboardInterrupt.
// A thread other than Python's main one has no signals to see, and must not ask for the GIL of an interpreter that is ending.
void check_signals() {
  if (std::this_thread::get_id() != python_thread) return;
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

std::unique_ptr<Engine> make_engine(std::shared_ptr<Transport> transport, const py::array& initial, int group_size,
                                    Version sync_period, bool grouped, bool merge_once, double timeout_s, bool record,
                                    bool digests, bool fixed, int initiators, std::int64_t seed, bool accumulate) {
  check_layout(initial);
  EngineConfig config;
  config.schedule = {transport->world_size(), group_size, sync_period, grouped, fixed, initiators, seed, accumulate};
  config.count = static_cast<std::size_t>(initial.size());
  config.dtype = dtype_of(initial);
  config.merge_once = merge_once;
  config.timeout_s = timeout_s;
  config.record = record;
  config.digests = digests;
  const void* model = initial.data();
  py::gil_scoped_release released;
  return std::make_unique<Engine>(config, std::move(transport), model);
}

void register_records(py::module_& module) {
  py::class_<Outcome>(module, "Outcome", "What an arrival gave: group_length is that of the merged version, 0 for nothing to merge.")
      .def_readonly("fresh", &Outcome::fresh)
      .def_readonly("merged_version", &Outcome::merged_version)
      .def_readonly("group_length", &Outcome::group_length);
  py::class_<ExecutionRecord>(module, "ExecutionRecord", "One execution at this rank; times in ns of the monotonic clock.")
      .def_readonly("sequence", &ExecutionRecord::sequence)
      .def_readonly("version", &ExecutionRecord::version)
      .def_readonly("members", &ExecutionRecord::members)
      .def_readonly("activator", &ExecutionRecord::activator)
      .def_readonly("activated_ns", &ExecutionRecord::activated_ns)
      .def_readonly("started_ns", &ExecutionRecord::started_ns)
      .def_readonly("completed_ns", &ExecutionRecord::completed_ns)
      .def_readonly("read_ns", &ExecutionRecord::read_ns)
      .def_readonly("own_stamp", &ExecutionRecord::own_stamp)
      .def_readonly("contribution_digest", &ExecutionRecord::contribution_digest)
      .def_readonly("sum_digest", &ExecutionRecord::sum_digest);
  py::class_<IterationRecord>(module, "IterationRecord", "One iteration of this rank; merged_version -1 for nothing merged.")
      .def_readonly("sequence", &IterationRecord::sequence)
      .def_readonly("iteration", &IterationRecord::iteration)
      .def_readonly("arrival_ns", &IterationRecord::arrival_ns)
      .def_readonly("return_ns", &IterationRecord::return_ns)
      .def_readonly("fresh", &IterationRecord::fresh)
      .def_readonly("merged_version", &IterationRecord::merged_version)
      .def_readonly("published_digest", &IterationRecord::published_digest)
      .def_readonly("merged_digest", &IterationRecord::merged_digest)
      .def_readonly("model_digest", &IterationRecord::model_digest);
  py::class_<Records>(module, "Records", "What an engine noted since it was last asked; digests are 0 where they are off.")
      .def_readonly("executions", &Records::executions)
      .def_readonly("iterations", &Records::iterations);
}

void register_transports(py::module_& module) {
  py::class_<Transport, std::shared_ptr<Transport>>(module, "Transport", "How an engine reaches its peers; made by a hub or by MPI.")
      .def_property_readonly("rank", &Transport::rank)
      .def_property_readonly("world_size", &Transport::world_size);
  py::class_<LocalHub, std::shared_ptr<LocalHub>>(module, "LocalHub", "What the ranks of one run share when they are threads.")
      .def(py::init<int>(), py::arg("world_size"))
      .def_property_readonly("world_size", &LocalHub::world_size)
      .def("transport", &LocalHub::transport, py::arg("rank"), "The transport of `rank`; each can be had once.")
      .def("fail", &LocalHub::fail, py::arg("rank"), py::arg("message"), py::call_guard<py::gil_scoped_release>(),
           "Every rank's engine stops with PeerFailed, which names `rank`.");
}

}  // namespace

void register_engine(py::module_& module) {
  py::register_exception_translator(translate);
  register_transports(module);
  register_records(module);
  py::class_<Engine>(module, "Engine", "One rank's decision machine, buffers and progress thread.")
      .def(py::init(&make_engine), py::arg("transport"), py::arg("initial"), py::kw_only(), py::arg("group_size"),
           py::arg("sync_period"), py::arg("grouped") = true, py::arg("merge_once") = false, py::arg("timeout_s") = 300.0,
           py::arg("record") = false, py::arg("digests") = false, py::arg("fixed") = false, py::arg("initiators") = 0,
           py::arg("seed") = 0, py::arg("accumulate") = false)
      .def(
          "arrive",
          [](Engine& engine, Version version, const py::array& own) {
            check_like(engine, own);
            const void* model = own.data();
            py::gil_scoped_release released;
            return engine.arrive(version, model, check_signals);
          },
          py::arg("version"), py::arg("own"),
          "Publish `own` for `version` and wait; after group_length > 0 exactly one of merge and copy_result has to follow.")
      .def(
          "merge",
          [](Engine& engine, py::array own, int own_weight, int divisor) {
            void* model = writable(engine, own);
            py::gil_scoped_release released;
            engine.merge(model, own_weight, divisor);
          },
          py::arg("own"), py::arg("own_weight"), py::arg("divisor"), "own = (sum + own_weight * own) / divisor, in place.")
      .def(
          "copy_result",
          [](Engine& engine, py::array own) {
            void* model = writable(engine, own);
            py::gil_scoped_release released;
            engine.copy_result(model);
          },
          py::arg("own"), "own = result; at a sync the result is the mean.")
      .def(
          "close",
          [](Engine& engine) {
            py::gil_scoped_release released;
            engine.close(check_signals);
          },
          "Serve the other ranks until all have closed.")
      .def("abort", &Engine::abort, py::arg("message"), py::call_guard<py::gil_scoped_release>(),
           "Tell the peers and stop, waiting for nobody.")
      .def_property_readonly("rank", &Engine::rank)
      .def("take_records", &Engine::take_records, "The records since the last call.");
}
