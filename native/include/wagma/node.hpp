// What the ranks of one run share when they share memory: threads of a process or processes of one machine, which makes no
// difference here. Only addresses relative to the segment are stored in it, since every process maps it somewhere else.
//
// Every word that two ranks touch is an atomic with one writer, or a counter; the comment beside it says what it protects. A rank
// that dies in between leaves the others with a wait that has a limit, never with a lock that nobody releases: there are no locks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "wagma/concurrency.hpp"
#include "wagma/doorbell.hpp"
#include "wagma/segment.hpp"
#include "wagma/transport.hpp"

namespace wagma {

// Where activations for one rank arrive. One word for each dimension is enough, as it has one sender (the rank from which the dimension
// leads here), and of the activations over one dimension only the highest version tells anything (wagma/core/protocol.py), of the
// messages that a rank has closed only the lowest.
struct alignas(64) Mailbox {
  static constexpr int kDimensions = 32;
  Doorbell bell;
  alignas(64) std::array<Atomic<Version>, kDimensions> activated;
  std::array<Atomic<Version>, kDimensions> solo_from;
  // What the sender rings for, or would have if the receiver had not been awake. A receiver that stops looking looks here once more:
  // nobody will ring again for what stands here, but somebody will for what was only posted (NodeRank's grace).
  std::array<Atomic<Version>, kDimensions> rung;
  // What the receiver has taken: a sender that put off ringing need not ring any more.
  alignas(64) std::array<Atomic<Version>, kDimensions> taken;
  // How late the rank was (Transport::note_lateness), ns, less for what is longer ago; a hint whether to put off ringing. By the rank itself.
  Atomic<std::int64_t> lateness;
  // Whether the application sleeps until an activation comes (another hint, whether it helps to put off ringing). By whoever drives the rank.
  Atomic<std::int32_t> awaits;
};

// What one rank shows of its present execution. Written by the rank itself before `begun`, which publishes it together with the
// contribution's bytes (those that are filled later are published by `filled`); it changes only after the version is complete, so whoever holds an unfinished chunk reads it safely.
struct alignas(64) Desk {
  Atomic<std::int32_t> process;  // id; 0: has not entered
  Atomic<Version> begun;  // the version that this rank executes or executed last
  Atomic<std::int64_t> contribution;  // offset in the segment; -1: null. Of buffers on a device: their number, as for the target
  Atomic<std::int64_t> target;
  Atomic<Version> stamp;  // of what lies in the contribution's buffer
  Atomic<std::int32_t> divisor;
  // How many chunks of the contribution are there, with the version's tag, and whether this rank is present, and through (chunks.hpp).
  alignas(64) Atomic<std::uint64_t> filled;
  // Chunks of the version's data, where this rank is the first member of its group: the next one that nobody has taken, and how many
  // are done. The upper half is the version's tag: a member that looks late would otherwise take a chunk of the next version.
  alignas(64) Atomic<std::uint64_t> next_chunk;
  alignas(64) Atomic<std::uint64_t> chunks_done;
  // Whether this rank uses no memory of others' devices any more (transport_device.cpp): before all have, none may free its own.
  Atomic<std::int32_t> left;
};

class Node {
 public:
  struct Plan {
    int world_size = 0;
    int buffers = 0;  // a rank
    std::size_t buffer_bytes = 0;
    bool operator==(const Plan&) const = default;
  };
  static std::size_t bytes(const Plan& plan);

  // For the threads of this process. Throws std::invalid_argument for a plan that makes no sense, TransportError for one too large.
  static std::shared_ptr<Node> in_process(const Plan& plan);
  // For processes: one of them makes the segment, the others look at it only after `create` has returned there.
  static std::shared_ptr<Node> create(const Plan& plan);
  static std::shared_ptr<Node> join(const Plan& plan, std::shared_ptr<Segment> segment);

  const Plan& plan() const { return plan_; }
  const Segment& segment() const { return *segment_; }
  std::byte* buffer(int rank, int index) const;
  Mailbox& mailbox(int rank) const { return mailboxes_[rank]; }
  Desk& desk(int rank) const { return desks_[rank]; }
  // The memory of this rank's buffers is found, and its cores are known, from here on. By each rank once, before any begins.
  void enter(int rank);

  // Whether the process of `rank` has ended; not for a rank that never entered.
  bool is_gone(int rank) const;

  // Cores on which any of the ranks that have entered may run.
  int cores() const;
  // Ranks that have closed, and the largest of their last versions; the second is final once all have.
  void close(Version last_arrived);
  std::optional<Version> all_closed() const;
  // Only the first failure is kept: later ones are its consequences.
  void fail(int rank, const std::string& message);
  std::optional<Failure> failure() const;
  bool has_failed() const { return header_->failing.load() == Failing::written; }
  void ring_all() const;

 private:
  static constexpr std::size_t kLongestText = 1000;
  static constexpr int kCoreWords = 16;  // 1024 cores
  enum Failing : std::int32_t { none, writing, written };

  struct Header {
    Atomic<std::int32_t> closed;
    Atomic<Version> last;
    // Claimed by the first rank that fails (none to writing); `written` publishes rank and text.
    Atomic<std::int32_t> failing;
    std::int32_t failed_rank;
    char failure_text[kLongestText];
    std::array<Atomic<std::uint64_t>, kCoreWords> cores;
  };

  Node(const Plan& plan, std::shared_ptr<Segment> segment);
  void initialise();

  const Plan plan_;
  const std::shared_ptr<Segment> segment_;
  Header* header_ = nullptr;
  Mailbox* mailboxes_ = nullptr;
  Desk* desks_ = nullptr;
  std::byte* buffers_ = nullptr;
  std::size_t stride_ = 0;  // from one buffer to the next
};

}  // namespace wagma
