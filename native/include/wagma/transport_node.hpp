// Ranks that share memory: members reduce straight out of each other's published buffers and write into each other's targets.
//
// An execution. Each member shows its desk (node.hpp) for the version. Once all have, whoever runs takes chunk after chunk, reduces it out
// of all contributions and puts it into all targets, until none is left: once all contributions are filled, nobody waits for a member
// whose thread the operating system does not run, which is the rule where ranks outnumber cores. (In the direct way each member waits
// for all.) The version is complete, for everyone at once, when all chunks are done:
// then nobody reads a contribution or writes a target of it any more.
//
// Why a late look does no harm. A member leaves a version (begins its next one) only after all chunks are done. So whoever has taken a
// chunk and not yet finished it knows that all desks are still those of its version. Taking is a compare-and-swap on a word that carries
// the version's tag, in the desk of the first member: if that member has gone on, the tag differs, and so all chunks are done.
#pragma once

#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "wagma/node.hpp"

namespace wagma {

class NodeTransport final : public Transport {
 public:
  NodeTransport(std::shared_ptr<Node> node, int rank);

  int rank() const override { return rank_; }
  int world_size() const override { return node_->plan().world_size; }
  const char* name() const override { return "shared memory"; }
  std::byte* buffer(int index) const override { return node_->buffer(rank_, index); }
  int buffers() const override { return node_->plan().buffers; }
  std::size_t buffer_bytes() const override { return node_->plan().buffer_bytes; }

  void send_activation(int to, Activation activation) override;
  void note_lateness(Clock::duration late) override;
  std::optional<Activation> poll_activation() override;
  void begin(const Execution& execution) override;
  Progress progress() override;
  bool takes_models(std::size_t members) const override { return members > 1; }
  bool withdraw() override;
  std::vector<int> missing() override;
  std::string standing() override;
  void announce_close(Version last_arrived) override { node_->close(last_arrived); }
  std::optional<Version> poll_all_closed() override { return node_->all_closed(); }
  bool drain() override { return true; }  // what is sent lies in the receiver's mailbox at once
  void announce_failure(const std::string& message) override { node_->fail(rank_, message); }
  bool failure_delivered() override { return true; }
  std::optional<Failure> poll_failure() override { return node_->failure(); }
  void abandon() noexcept override {}  // peers may go on with this rank's buffers: they map them, too

  std::uint32_t announce(Sleeper who) override;
  std::uint32_t wakes() const override { return own().bell.count(); }
  void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) override;
  bool news() const override;
  void awake() override { own().bell.awake(); }
  void wake() override { own().bell.ring_all(); }
  Clock::duration patience() const override { return patience_; }
  void pause(Clock::duration idle) override;

 private:
  Mailbox& own() const { return node_->mailbox(rank_); }
  bool comes_soon(int rank) const;
  bool waits_for_activation(int rank) const;
  bool goes_directly() const;
  bool all_begun() const;
  bool all_filled(std::size_t chunk) const;
  bool all_present() const;
  void fill_chunk();
  void average_chunk();
  Progress progress_directly();
  std::optional<std::size_t> take_chunk();
  void reduce_chunk(std::size_t chunk);
  bool complete() const;
  void ring_members() const;
  static void ring_for(Mailbox& mailbox, int dimension, Version version);
  void put_off(int dimension, Version version);
  // Relaxed: only whoever drives makes it anything but kNever, and drive_ orders those; a stale other value costs one full look.
  bool has_put_off() const { return due_.load(std::memory_order_relaxed) != kNever; }
  void ring_due(std::int64_t now);
  void look_for_the_dead();

  const std::shared_ptr<Node> node_;
  const int rank_;
  const int dimensions_;  // of the activation trees
  Clock::duration patience_{};
  Clock::duration grace_{};
  bool graced_ = false;
  // What was posted and not yet rung for, by dimension (-1: nothing), and when that is due, in ns of the clock. Written by whoever drives;
  // taken by that thread, or by the progress thread, which keeps the time while the application sleeps. An entry is written before `due_`,
  // which is cleared before entries are taken: so no entry stays that nothing is due for. Each is taken once.
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  std::array<Atomic<Version>, Mailbox::kDimensions> unrung_;
  Atomic<std::int64_t> due_{kNever};
  std::int64_t told_due_ = kNever;  // to the progress thread, by whoever drives
  Clock::time_point looked_{};  // for processes that have ended
  // The newest version (lowest, for solo) taken from each dimension; dimensions at which the next look begins.
  std::vector<Version> activated_, solo_from_;

  // The execution under way.
  Execution execution_;
  bool running_ = false;
  bool met_ = false;  // all members have begun
  bool fits_ = false;                       // every rank has a core of its own
  bool present_ = false, willing_ = false;  // there is a model to fill from; and this rank would go the direct way
  bool direct_ = false;
  bool counted_ = false, told_ = true;      // that this member is through; of what it has filled
  std::size_t filled_ = 0, averaged_ = 0, window_ = 0;  // chunks
  std::uint64_t tag_ = 0;
  std::size_t chunk_items_ = 0, chunks_ = 0;
  Stores stores_ = Stores::cached;
  std::vector<const void*> sources_;  // of one chunk
  std::vector<void*> targets_;
  std::vector<int> divisors_;
};

}  // namespace wagma
