// Ranks of one machine whose models stay on their devices: members reduce straight out of each other's published buffers and into each
// other's targets, with kernels of their own device, as CUDA IPC lets them. Several ranks may share a device.
//
// Everything but the data goes through the node (node_rank.hpp): activations, desks, which chunks are taken and done. On a desk stand the
// numbers of buffers; where those are each rank has opened at the start.
//
// Who reduces. Published models are complete snapshots before their version starts, so a chunk needs nothing of the rank that published
// it, and of its device nothing but the memory. Members whose application has come for the version are *present*: it waits for the sum, and
// has given its device nothing else to do. They take the chunks, also an absent member's share; the device of an absent one may be busy
// for long. Only if no member is present all of them take chunks: then nobody waits for this version. Which it is stands in
// Desk::filled, is written before `begun`, and does not change while the version runs: so all members, whenever they look after all have
// begun, see the same. There is no version that nobody takes chunks of: either a member is present, whose two threads both drive this
// code, or every member takes them.
//
// Chunks in a member's hands. It has taken one, launches its kernel on a queue of this rank's own, and counts it as done only when the
// queue says that it is over (Queue::reached). node_rank.hpp's argument holds as it stands: a member leaves a version only after all chunks
// are done, so while a kernel is under way nobody publishes into the buffers it reads, or reads those that it writes.
//
// Order in memory. What a member publishes was written by kernels that its host has seen to be over before it wrote `begun`; whoever sees
// `begun` launches its kernels after that. The same the other way round: a chunk's kernel is over for the host that counts it in
// `chunks_done`, and whoever sees that count launches what reads the target after it. A kernel's end makes what it has written visible to
// later kernels of any device, also through memory that another process has opened.
//
// Stamps. Behind each buffer stands the version of what lies in it. Desks say what has to stand there; kernels look, and one that finds
// something else ends the run. The reduction with the last element stamps all targets.
//
// The end. Memory that another process has open must not be freed (CUDA leaves undefined what happens then). So whoever is through closes
// what it has opened, says so on its desk, and the end is reached when all have. After a failure that is waited for half a second; memory that is
// still open somewhere then, or a kernel still uses, stays until the process ends.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "wagma/device_buffers.hpp"
#include "wagma/node_rank.hpp"

namespace wagma {

class DeviceNodeTransport final : public NodeRank {
 public:
  // addresses: of all ranks' buffers (DeviceBuffers::address), which are alike; the own one is not opened. The node has no buffers of its own.
  // Throws DeviceError if one cannot be opened, TransportError for more ranks than a kernel can add up.
  DeviceNodeTransport(std::shared_ptr<Node> node, int rank, std::shared_ptr<DeviceBuffers> buffers, const std::vector<std::string>& addresses);
  ~DeviceNodeTransport() override;

  const char* name() const override { return name_.c_str(); }
  std::byte* buffer(int index) const override { return buffers_->buffer(index); }
  int buffers() const override { return buffers_->buffers(); }
  std::size_t buffer_bytes() const override { return buffers_->buffer_bytes(); }

  void begin(const Execution& execution) override;
  Progress progress() override;
  std::vector<int> missing() override;
  std::string standing() override;
  bool drain() override;
  void abandon() noexcept override;
  void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) override;

 private:
  struct Flight {  // a chunk whose kernel was launched
    Mark mark;
    std::size_t chunk;
  };

  std::int64_t index_of(const std::byte* buffer) const;
  bool takes_chunks() const;
  void launch(std::size_t chunk);
  bool land();
  void check_stamps() const;
  bool is_idle() noexcept;
  void leave() noexcept;
  bool all_left() const;

  std::shared_ptr<DeviceBuffers> buffers_;
  const std::string name_;
  std::vector<std::byte*> bases_;  // by rank, as this process sees them
  std::unique_ptr<Queue> queue_;
  bool left_ = false;

  // The execution under way.
  bool taking_ = false, decided_ = false;
  std::deque<Flight> flights_;
  // Whether there are any. Whoever drives writes it; a thread that goes to sleep reads it, without the right to drive. Relaxed: the thread that
  // drove last reads what it wrote itself, and one that sees an old value while the other drives naps in vain, or sleeps until it is woken.
  Atomic<bool> flying_{false};
};

}  // namespace wagma
