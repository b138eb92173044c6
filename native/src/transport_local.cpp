#include "wagma/transport_local.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "wagma/transport_device.hpp"
#include "wagma/transport_node.hpp"

namespace wagma {

LocalHub::LocalHub(int world_size) : handed_out_(static_cast<std::size_t>(std::max(0, world_size)), 0) {
  if (world_size < 1) {
    throw std::invalid_argument("world_size = " + std::to_string(world_size) + ": must be at least 1");
  }
}

std::shared_ptr<Transport> LocalHub::transport(int rank, int buffers, std::size_t buffer_bytes) {
  return std::make_shared<NodeTransport>(hand_out(rank, buffers, buffer_bytes), rank);
}

std::shared_ptr<Transport> LocalHub::device_transport(int rank, std::shared_ptr<DeviceBuffers> buffers,
                                                      const std::vector<std::string>& addresses) {
  return std::make_shared<DeviceNodeTransport>(hand_out(rank, 0, 0), rank, std::move(buffers), addresses);
}

std::shared_ptr<Node> LocalHub::hand_out(int rank, int buffers, std::size_t buffer_bytes) {
  if (rank < 0 || rank >= world_size()) {
    throw std::invalid_argument("rank = " + std::to_string(rank) + ": must be from 0 to " + std::to_string(world_size() - 1));
  }
  std::lock_guard lock(mutex_);
  if (handed_out_[rank]) {
    throw std::invalid_argument("rank = " + std::to_string(rank) + ": has its transport already; one run needs one hub");
  }
  const Node::Plan plan{world_size(), buffers, buffer_bytes};
  if (!node_) {
    node_ = Node::in_process(plan);
    if (failed_) node_->fail(failed_->first, failed_->second);
  }
  if (node_->plan() != plan) {
    throw std::invalid_argument("rank " + std::to_string(rank) + " has " + std::to_string(buffers) + " buffers of " +
                                std::to_string(buffer_bytes) + " bytes: must be " + std::to_string(node_->plan().buffers) + " of " +
                                std::to_string(node_->plan().buffer_bytes) + ", as the other ranks'");
  }
  handed_out_[rank] = 1;
  return node_;
}

void LocalHub::fail(int rank, const std::string& message) {
  std::lock_guard lock(mutex_);
  if (node_) {
    node_->fail(rank, message);
  } else if (!failed_) {
    failed_ = {rank, message};
  }
}

}  // namespace wagma
