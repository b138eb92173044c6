// Transports for Python, but for MPI's (module_mpi.cpp): threads of this process, and processes of one machine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "wagma/transport_device.hpp"
#include "wagma/transport_local.hpp"
#include "wagma/transport_node.hpp"

namespace py = pybind11;

namespace {

using namespace wagma;
using unlocked = py::call_guard<py::gil_scoped_release>;  // for what takes long or wakes other ranks

std::shared_ptr<Node> create(int world_size, int buffers, std::size_t buffer_bytes) {
  return Node::create({world_size, buffers, buffer_bytes});
}

std::shared_ptr<Node> join(int world_size, int buffers, std::size_t buffer_bytes, long process, int descriptor, unsigned long long identity) {
  const Node::Plan plan{world_size, buffers, buffer_bytes};
  return Node::join(plan, Segment::open(process, descriptor, Node::bytes(plan), identity));
}

// The end of a transport on devices may wait for other ranks, which may be threads of this process that need the GIL to get there.
std::shared_ptr<Transport> ending_unlocked(std::shared_ptr<Transport> transport) {
  Transport* const plain = transport.get();
  return std::shared_ptr<Transport>(plain, [transport = std::move(transport)](Transport*) mutable {
    if (Py_IsInitialized() && PyGILState_Check()) {
      py::gil_scoped_release released;
      transport.reset();
    } else {
      transport.reset();
    }
  });
}

}  // namespace

void register_transport(py::module_& module) {
  py::class_<Transport, std::shared_ptr<Transport>>(module, "Transport", "How an engine reaches its peers; made by a hub, a node or MPI.")
      .def_property_readonly("rank", &Transport::rank)
      .def_property_readonly("world_size", &Transport::world_size)
      .def_property_readonly("name", &Transport::name)
      .def_property_readonly("buffers", &Transport::buffers)
      .def_property_readonly("buffer_bytes", &Transport::buffer_bytes);
  py::class_<LocalHub, std::shared_ptr<LocalHub>>(module, "LocalHub", "What the ranks of one run share when they are threads.")
      .def(py::init<int>(), py::arg("world_size"))
      .def_property_readonly("world_size", &LocalHub::world_size)
      .def("transport", &LocalHub::transport, py::arg("rank"), py::arg("buffers"), py::arg("buffer_bytes"), unlocked(),
           "The transport of `rank`; each can be had once.")
      .def(
          "device_transport",
          [](LocalHub& hub, int rank, std::shared_ptr<DeviceBuffers> own, const std::vector<std::string>& addresses) {
            return ending_unlocked(hub.device_transport(rank, std::move(own), addresses));
          },
          py::arg("rank"), py::arg("own"), py::arg("addresses"), unlocked(),
           "The same with buffers on devices: this rank's own ones, and where all ranks' are.")
      .def("fail", &LocalHub::fail, py::arg("rank"), py::arg("message"), unlocked(),
           "Every rank's engine stops with PeerFailed, which names `rank`.");
  py::class_<Node, std::shared_ptr<Node>>(module, "Node", "What the ranks of one run share when they are processes of one machine.")
      .def_static("create", &create, py::arg("world_size"), py::arg("buffers"), py::arg("buffer_bytes"), unlocked(),
                  "By one rank; the others join by its process id, `descriptor` and `identity`.")
      .def_static("join", &join, py::arg("world_size"), py::arg("buffers"), py::arg("buffer_bytes"), py::arg("process"),
                  py::arg("descriptor"), py::arg("identity"), unlocked())
      .def_property_readonly("descriptor", [](const Node& node) { return node.segment().descriptor(); })
      .def_property_readonly("identity", [](const Node& node) { return node.segment().identity(); })
      .def(
          "transport",
          [](const std::shared_ptr<Node>& node, int rank) -> std::shared_ptr<Transport> {
            return std::make_shared<NodeTransport>(node, rank);
          },
          py::arg("rank"), unlocked(), "That of `rank`, whose memory is reserved here; once for each rank.")
      .def(
          "device_transport",
          [](const std::shared_ptr<Node>& node, int rank, std::shared_ptr<DeviceBuffers> own,
             const std::vector<std::string>& addresses) {
            return ending_unlocked(std::make_shared<DeviceNodeTransport>(node, rank, std::move(own), addresses));
          },
          py::arg("rank"), py::arg("own"), py::arg("addresses"), unlocked(),
          "That of `rank` with buffers on devices: its own ones, and where all ranks' are. Of a node without buffers.");
}
