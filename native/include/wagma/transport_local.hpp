// Ranks as threads of one process: a node (node.hpp) in memory of this process alone. Neither MPI nor Python.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "wagma/transport.hpp"

namespace wagma {

class DeviceBuffers;
class Node;

// What the ranks of one run share. Create one hub per run, and one transport per rank from it.
class LocalHub {
 public:
  explicit LocalHub(int world_size);  // at least 1, else std::invalid_argument
  int world_size() const { return static_cast<int>(handed_out_.size()); }
  // With `buffers` buffers of `buffer_bytes`, the same for every rank. Throws std::invalid_argument if they are not, for a rank out of
  // range, or one that was handed out before.
  std::shared_ptr<Transport> transport(int rank, int buffers, std::size_t buffer_bytes);
  // The same with models on devices; addresses: of all ranks' buffers. Throws what DeviceNodeTransport does, too.
  std::shared_ptr<Transport> device_transport(int rank, std::shared_ptr<DeviceBuffers> buffers, const std::vector<std::string>& addresses);
  // Every rank's engine stops with PeerFailed, also if the rank that failed can no longer be asked; from any thread.
  void fail(int rank, const std::string& message);

 private:
  std::shared_ptr<Node> hand_out(int rank, int buffers, std::size_t buffer_bytes);

  // Protects everything below: ranks come for their transports at the same time, and one of them makes the node.
  std::mutex mutex_;
  std::shared_ptr<Node> node_;
  std::optional<std::pair<int, std::string>> failed_;  // before there is a node
  std::vector<char> handed_out_;
};

}  // namespace wagma
