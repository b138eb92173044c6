// Ranks that share memory: members reduce straight out of each other's published buffers and write into each other's targets.
//
// Chunks are taken by whoever runs (node_rank.hpp): once all contributions are filled, nobody waits for a member whose thread the
// operating system does not run, which is the rule where ranks outnumber cores. (In the direct way each member waits for all.)
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "wagma/node_rank.hpp"

namespace wagma {

class NodeTransport final : public NodeRank {
 public:
  NodeTransport(std::shared_ptr<Node> node, int rank) : NodeRank(std::move(node), rank) {}

  const char* name() const override { return "shared memory"; }
  std::byte* buffer(int index) const override { return node_->buffer(rank_, index); }
  int buffers() const override { return node_->plan().buffers; }
  std::size_t buffer_bytes() const override { return node_->plan().buffer_bytes; }

  void begin(const Execution& execution) override;
  Progress progress() override;
  bool takes_models(std::size_t members) const override { return members > 1; }
  bool withdraw() override;
  std::vector<int> missing() override;
  std::string standing() override;
  bool drain() override { return true; }  // what is sent lies in the receiver's mailbox at once
  void abandon() noexcept override {}  // peers may go on with this rank's buffers: they map them, too

 private:
  bool may_take(std::size_t chunk) const override { return all_filled(chunk); }
  bool goes_directly() const;
  bool all_filled(std::size_t chunk) const;
  bool all_present() const;
  void fill_chunk();
  void average_chunk();
  Progress progress_directly();
  void reduce_chunk(std::size_t chunk);

  // The execution under way.
  bool present_ = false, willing_ = false;  // there is a model to fill from; and this rank would go the direct way
  bool direct_ = false;
  bool counted_ = false, told_ = true;      // that this member is through; of what it has filled
  std::size_t filled_ = 0, averaged_ = 0, window_ = 0;  // chunks
  Stores stores_ = Stores::cached;
  std::vector<const void*> sources_;  // of one chunk
  std::vector<void*> targets_;
  std::vector<int> divisors_;
};

}  // namespace wagma
