// Engine, models and what they throw, for Python. Everything that waits or copies releases the GIL: the other Python
// threads of the process, ranks of a local hub among them, have to run meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <thread>

#include "bindings.hpp"
#include "device_parts.hpp"
#include "wagma/engine.hpp"
#include "wagma/report.hpp"

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
  } catch (const OutOfDeviceMemory& error) {
    set("OutOfDeviceMemory", error);
  } catch (const DeviceError& error) {
    set("DeviceError", error);
  } catch (const TransportError& error) {
    set("WagmaError", error);
  }
}

DType dtype_of(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  raise_python("InputError", "dtype = " + name + ": must be float32, float64, float16 or bfloat16");
}

// numpy has no bfloat16: its items come, and go, as 16-bit integers, or as whatever type of 16 bits another library has added. By
// numpy's numbers, which are part of its binary interface: comparing dtypes would cost more than a small reduction.
bool holds(const py::array& array, DType dtype) {
  constexpr int kFloat = 11, kDouble = 12, kHalf = 23;
  const py::dtype given = array.dtype();
  const bool native = given.byteorder() == '=';
  switch (dtype) {
    case DType::float32:
      return given.num() == kFloat && native;
    case DType::float64:
      return given.num() == kDouble && native;
    case DType::float16:
      return given.num() == kHalf && native;
    default:
      return given.itemsize() == 2 && given.kind() != 'f';
  }
}

void check_like(const EngineConfig& config, const py::array& array) {
  if (array.ndim() != 1 || !(array.flags() & py::array::c_style)) {
    raise_python("InputError", "the model is not a 1-D C-contiguous array: it has " + std::to_string(array.ndim()) +
                                   " dimensions" + (array.flags() & py::array::c_style ? "" : " and gaps"));
  }
  if (!holds(array, config.dtype) || static_cast<std::size_t>(array.size()) != config.count) {
    raise_python("InputError", "the model has " + std::to_string(array.size()) + " elements of " +
                                   py::str(array.dtype()).cast<std::string>() + ": the engine was made for " +
                                   std::to_string(config.count) + " of " + dtype_name(config.dtype));
  }
}

void check_like(const EngineConfig& config, const Parts& parts) {
  if (config.resident) {
    if (parts.count() == 0) return;
    raise_python("InputError", "the model has " + std::to_string(parts.count()) + " elements: must be none, its stream alone, of a resident model on a device");
  }
  if (parts.dtype() == config.dtype && parts.count() == config.count) return;
  raise_python("InputError", "the model has " + std::to_string(parts.count()) + " elements of " + dtype_name(parts.dtype()) +
                                 ": the engine was made for " + std::to_string(config.count) + " of " + dtype_name(config.dtype));
}

// What the engine reads as `own`; nullptr for None: a resident model is not handed in, but on a device in whose order it was written.
void* model_of(const Engine& engine, const py::object& own, bool written) {
  if (own.is_none()) return nullptr;
  const bool is_array = py::isinstance<py::array>(own);
  if (!is_array && !py::isinstance<DeviceParts>(own)) {
    raise_python("InputError", "the model is of type " + py::str(py::type::of(own)).cast<std::string>() + ": must be an array or DeviceParts");
  }
  if (is_array != engine.models().are_host_arrays()) {
    raise_python("InputError", std::string("the model is ") + (is_array ? "an array in host memory" : "on a device") + ": the engine was made for " +
                                   (is_array ? "one on a device" : "arrays in host memory"));
  }
  if (!is_array) {
    auto& parts = own.cast<DeviceParts&>();
    check_like(engine.config(), parts.parts());
    return parts.model();
  }
  auto array = own.cast<py::array>();
  check_like(engine.config(), array);
  if (!written) return const_cast<void*>(array.data());
  if (!array.writeable()) raise_python("InputError", "the model is read-only: the average cannot be written into it");
  return array.mutable_data();
}

// `call` without the GIL. A device that has not ended what it was given, when its wait is given up, still reads these parts: then they stay.
template <class Call>
auto with_model(Engine& engine, const py::object& own, bool written, Call call) {
  constexpr double kSettling = 0.2;  // seconds
  void* model = model_of(engine, own, written);
  try {
    py::gil_scoped_release released;
    return call(model);
  } catch (...) {
    bool settled = true;
    {
      py::gil_scoped_release released;
      settled = engine.settled(kSettling);
    }
    if (!settled) own.inc_ref();
    throw;
  }
}

void check_buffer(const Engine& engine, int index) {
  if (index >= 0 && index < engine.transport().buffers()) return;
  raise_python("InputError", "buffer " + std::to_string(index) + ": must be from 0 to " + std::to_string(engine.transport().buffers() - 1));
}

// Where it is in the memory of host or device. Valid for as long as somebody has the engine.
std::uintptr_t buffer_address(const Engine& engine, int index) {
  check_buffer(engine, index);
  return reinterpret_cast<std::uintptr_t>(engine.transport().buffer(index));
}

// A buffer as an array that keeps the engine, and with it the memory, alive.
py::array buffer_of(const py::object& self, int index) {
  const auto& engine = self.cast<const Engine&>();
  check_buffer(engine, index);
  if (!engine.models().are_host_arrays()) {
    raise_python("InputError", "buffer " + std::to_string(index) + ": the engine's models are on a device: buffer_address says where it is");
  }
  const EngineConfig& config = engine.config();
  const py::dtype dtype(config.dtype == DType::bfloat16 ? "uint16" : dtype_name(config.dtype));
  return py::array(dtype, {static_cast<py::ssize_t>(config.count)}, {}, engine.transport().buffer(index), self);
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

EngineConfig make_config(int world_size, int group_size, Version sync_period, std::size_t count, const std::string& dtype, bool grouped,
                         bool fixed, int initiators, std::int64_t seed, bool accumulate, bool merge_once, bool resident,
                         bool mean_when_fresh, double timeout_s, double watchdog_s, bool record, bool digests, Version begin) {
  EngineConfig config;
  config.schedule = {world_size, group_size, sync_period, grouped, fixed, initiators, seed, accumulate, begin};
  config.count = count;
  config.dtype = dtype_of(dtype);
  config.merge_once = merge_once;
  config.resident = resident;
  config.mean_when_fresh = mean_when_fresh;
  config.timeout_s = timeout_s;
  config.watchdog_s = watchdog_s;
  config.record = record;
  config.digests = digests;
  config.check();
  return config;
}

std::unique_ptr<Engine> make_engine(const EngineConfig& config, std::shared_ptr<Transport> transport, const py::array& initial,
                                    std::shared_ptr<Models> models) {
  check_like(config, initial);
  const void* model = initial.data();
  py::gil_scoped_release released;
  return std::make_unique<Engine>(config, std::move(transport), model, std::move(models));
}

void register_models(py::module_& module) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Models, std::shared_ptr<Models>>(module, "Models", "How models get into a transport's buffers; of one engine each.")
      .def_property_readonly("suffix", &Models::suffix, "Behind the transport's name: what models go through.");
  module.def(
      "device_models",
      [](std::shared_ptr<Device> device, const EngineConfig& config, std::size_t stamp_offset) {
        return device_models(std::move(device), config.dtype, config.count, stamp_offset, config.timeout_s);
      },
      py::arg("device"), py::arg("config"), py::arg("stamp_offset"), unlocked(), "Of a transport whose buffers (DeviceBuffers) are on the device.");
  module.def(
      "staged_models",
      [](std::shared_ptr<Device> device, const EngineConfig& config, std::shared_ptr<Transport> transport) {
        return staged_models(std::move(device), config.dtype, config.count, std::move(transport), config.timeout_s);
      },
      py::arg("device"), py::arg("config"), py::arg("transport"), unlocked(),
      "Models on the device, of a transport whose buffers are in host memory; they are pinned if that is permitted.");
}

void register_config(py::module_& module) {
  py::class_<EngineConfig>(module, "EngineConfig", "What the engines of all ranks have to agree on, and what a transport has to provide.")
      .def(py::init(&make_config), py::kw_only(), py::arg("world_size"), py::arg("group_size"), py::arg("sync_period"),
           py::arg("count"), py::arg("dtype") = "float32", py::arg("grouped") = true, py::arg("fixed") = false,
           py::arg("initiators") = 0, py::arg("seed") = 0, py::arg("accumulate") = false, py::arg("merge_once") = false,
           py::arg("resident") = false, py::arg("mean_when_fresh") = false, py::arg("timeout_s") = 300.0, py::arg("watchdog_s") = 60.0, py::arg("record") = false,
           py::arg("digests") = false, py::arg("begin") = 0)
      .def_readonly("resident", &EngineConfig::resident)
      .def_property_readonly("buffers", &EngineConfig::buffers, "Buffers that a rank needs.")
      .def_property_readonly("buffer_bytes", &EngineConfig::buffer_bytes);
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

}  // namespace

void register_engine(py::module_& module) {
  py::register_exception_translator(translate);
  register_records(module);
  register_config(module);
  register_models(module);
  module.def("report_on", &report_on, py::arg("signal"),
             "Each engine writes a line about itself to standard error within about a second of `signal`, and who handled it before still "
             "does; once. False if it does already, or if the signal is ignored.");
  py::class_<Engine>(module, "Engine", "One rank's decision machine, buffers and progress thread.")
      .def(py::init(&make_engine), py::arg("config"), py::arg("transport"), py::arg("initial"), py::arg("models") = py::none())
      .def(
          "begin_at",
          [](Engine& engine, Version begin, const py::array& initial) {
            check_like(engine.config(), initial);
            const void* model = initial.data();
            py::gil_scoped_release released;
            engine.begin_at(begin, model);
          },
          py::arg("begin"), py::arg("initial"),
          "A resumed run: the first iteration is `begin`; every rank, before any of them arrives, which the caller sees to.")
      .def(
          "arrive",
          [](Engine& engine, Version version, const py::object& own) {
            return with_model(engine, own, false, [&](void* model) { return engine.arrive(version, model, check_signals); });
          },
          py::arg("version"), py::arg("own"),
          "Publish `own` (None: the model resident in host memory; DeviceParts without tensors: the one resident on a device) for `version` "
          "and wait; after group_length > 0 exactly one of merge and copy_result has to follow.")
      .def(
          "average",
          [](Engine& engine, Version version, const py::object& own) {
            return with_model(engine, own, true, [&](void* model) { return engine.average(version, model, check_signals); });
          },
          py::arg("version"), py::arg("own"),
          "arrive, then copy_result at a sync, else merge by the rule of W algorithm 2 (wagma.core.averaging.merge_rule).")
      .def(
          "merge",
          [](Engine& engine, const py::object& own, int own_weight, int divisor) {
            with_model(engine, own, true, [&](void* model) { engine.merge(model, own_weight, divisor, check_signals); });
          },
          py::arg("own"), py::arg("own_weight"), py::arg("divisor"), "own = (sum + own_weight * own) / divisor, in place.")
      .def(
          "copy_result",
          [](Engine& engine, const py::object& own) {
            with_model(engine, own, true, [&](void* model) { engine.copy_result(model, check_signals); });
          },
          py::arg("own"), "own = result; at a sync the result is the mean.")
      .def(
          "retract",
          [](Engine& engine, const py::object& own) {
            return with_model(engine, own, true, [&](void* model) { return engine.retract(model, check_signals); });
          },
          py::arg("own"), "own += what no version has taken yet, where contributions accumulate; whether there was something.")
      .def_property_readonly("live_index", &Engine::live_index, "The buffer with the resident model.")
      .def("buffer", &buffer_of, py::arg("index"), "A buffer as an array; bfloat16 as uint16.")
      .def("buffer_address", &buffer_address, py::arg("index"), "Where it is. As long as somebody has the engine.")
      .def(
          "close",
          [](Engine& engine, const py::object& model) {
            with_model(engine, model, false, [&](void* last) { engine.close(check_signals, last); });
          },
          py::arg("model") = py::none(), "Serve the other ranks until all have closed.")
      .def("abort", &Engine::abort, py::arg("message"), py::call_guard<py::gil_scoped_release>(),
           "Tell the peers and stop, waiting for nobody.")
      .def_property_readonly("rank", &Engine::rank)
      .def("take_records", &Engine::take_records, "The records since the last call.");
}
