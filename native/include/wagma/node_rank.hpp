// A rank among those that share a node (node.hpp), wherever its models are: activations, ringing and sleeping, the end, failures; and how the
// members of a version meet at their desks and share its chunks. What a chunk is and who reduces it: NodeTransport, DeviceNodeTransport.
//
// An execution. Each member shows its desk for the version. Once all have, members take chunk after chunk, reduce it out of all
// contributions and put it into all targets, until none is left. The version is complete, for everyone at once, when all chunks are done:
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
#include <string>
#include <vector>

#include "wagma/node.hpp"

namespace wagma {

class NodeRank : public Transport {
 public:
  int rank() const override { return rank_; }
  int world_size() const override { return node_->plan().world_size; }

  void send_activation(int to, Activation activation) override;
  void note_lateness(Clock::duration late) override;
  std::optional<Activation> poll_activation() override;
  std::string standing() override;
  void announce_close(Version last_arrived) override { node_->close(last_arrived); }
  std::optional<Version> poll_all_closed() override { return node_->all_closed(); }
  void announce_failure(const std::string& message) override { node_->fail(rank_, message); }
  bool failure_delivered() override { return true; }
  std::optional<Failure> poll_failure() override { return node_->failure(); }

  std::uint32_t announce(Sleeper who) override;
  std::uint32_t wakes() const override { return own().bell.count(); }
  void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) override;
  bool news() const override;
  void awake() override { own().bell.awake(); }
  void wake() override { own().bell.ring_all(); }
  Clock::duration patience() const override { return patience_; }
  void pause(Clock::duration idle) override;

 protected:
  NodeRank(std::shared_ptr<Node> node, int rank);

  Mailbox& own() const { return node_->mailbox(rank_); }
  bool comes_soon(int rank) const;

  // The beginning of an execution, in two steps; `moved`: bytes of the host's memory that it moves.
  void lay_out(const Execution& execution, std::size_t chunk_items, std::size_t moved);
  void begin_at_desk(std::uint64_t filled, std::int64_t contribution, std::int64_t target);
  bool all_begun() const;
  // The next chunk that nobody has taken, if may_take() says that it is there.
  std::optional<std::size_t> take_chunk();
  virtual bool may_take(std::size_t) const { return true; }
  // Of all chunks, or of whatever else has to be counted before members may go on.
  void count_done(std::size_t parts);
  bool complete(std::size_t parts) const;

  void ring_members() const;
  // Relaxed: only whoever drives makes it anything but kNever, and drive_ orders those; a stale other value costs one full look.
  bool has_put_off() const { return due_.load(std::memory_order_relaxed) != kNever; }
  void ring_due(std::int64_t now);

  const std::shared_ptr<Node> node_;
  const int rank_;
  bool fits_ = false;  // every rank has a core of its own

  // The execution under way.
  Execution execution_;
  bool running_ = false;
  bool met_ = false;  // all members have begun
  std::uint64_t tag_ = 0;
  std::size_t chunk_items_ = 0, chunks_ = 0;

 private:
  bool waits_for_activation(int rank) const;
  static void ring_for(Mailbox& mailbox, int dimension, Version version);
  void put_off(int dimension, Version version);
  void look_for_the_dead();

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
};

}  // namespace wagma
