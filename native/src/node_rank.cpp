#include "wagma/node_rank.hpp"

#include <sched.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "chunks.hpp"

namespace wagma {

namespace {

constexpr Version kNoVersion = -1;
constexpr Version kNobody = std::numeric_limits<Version>::max();
constexpr auto kLook = std::chrono::milliseconds(200);
// It pays to look again for about as long as a sleep and a wake take. Where a few ranks share a core, looks give way to each other
// (pause), and what moves a small model is a thread's turn: then members that wait for it take turns in some microseconds each, while to
// wake those that sleep takes longer than all the rest. With a larger model, or many ranks of a core, whoever looks is in the way.
constexpr auto kPatience = std::chrono::microseconds(100);
constexpr int kFewRanks = 4;  // of a core
constexpr auto kUnshared = std::chrono::microseconds(10);
// For so long a rank that has activated others trusts that they come by themselves before it rings; of those only that came in time, or
// nearly, the last times. Where they have cores of their own a balanced run then needs no system call, and a late rank is activated so
// much later.
constexpr auto kGrace = std::chrono::microseconds(30);
// Where ranks share cores more is at stake: whoever comes first holds a core that another one needs in order to come, and a progress thread
// that is rung for contributes an old model although its application is about to arrive. To come takes each rank of a core a wake-up and
// some work, one after the other (of four ranks on two cores the last one comes 30 to 100 us after the first).
constexpr auto kSharedGrace = std::chrono::microseconds(50);
// More where the collective itself takes longer: a part of what it takes to move its bytes, here at kRate, which it cannot be held up by
// noticeably; but no more than the limit, as the ranks of other groups may wait for an activation, too.
constexpr double kGracePart = 1.0 / 8, kRate = 20e9;  // bytes a second
constexpr auto kLongestGrace = std::chrono::milliseconds(2);
constexpr auto kLatest = 2 * kLongestGrace;  // what a rank is late beyond it makes no difference

Clock::duration shared_grace(std::size_t bytes, int ranks_per_core) {
  const std::chrono::duration<double> part(kGracePart * static_cast<double>(bytes) / kRate);
  const Clock::duration least = std::min<Clock::duration>(ranks_per_core * kSharedGrace, kLongestGrace);
  return std::clamp<Clock::duration>(std::chrono::duration_cast<Clock::duration>(part), least, kLongestGrace);
}

std::uint64_t tag_of(Version version) { return static_cast<std::uint64_t>(static_cast<std::uint32_t>(version)) << 32; }

}  // namespace

NodeRank::NodeRank(std::shared_ptr<Node> node, int rank)
    : node_(std::move(node)), rank_(rank), dimensions_(std::bit_width(static_cast<unsigned>(node_->plan().world_size - 1))) {
  node_->enter(rank);
  for (auto& version : unrung_) version = kNoVersion;
  activated_.assign(Mailbox::kDimensions, kNoVersion);
  solo_from_.assign(Mailbox::kDimensions, kNobody);
}

// -- activations --------------------------------------------------------------------------------------------------------

void NodeRank::send_activation(int to, Activation activation) {
  Mailbox& mailbox = node_->mailbox(to);
  if (activation.solo) {
    mailbox.solo_from[activation.dimension].store(activation.version);
    mailbox.bell.ring();
    return;
  }
  mailbox.activated[activation.dimension].store(activation.version);
  if (grace_ > Clock::duration::zero() && comes_soon(to) && !waits_for_activation(to)) {
    put_off(activation.dimension, activation.version);
  } else {
    ring_for(mailbox, activation.dimension, activation.version);
  }
}

// Forgotten bit by bit: whoever comes in time once, as the first or by chance, may be as late as ever the next time. Of two threads that
// note something one may overwrite what the other has noted: then the next activation is rung for too early, or too late.
void NodeRank::note_lateness(Clock::duration late) {
  auto& noted = own().lateness;
  const std::int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(std::min<Clock::duration>(late, kLatest)).count();
  noted.store(std::max(now, noted.load(std::memory_order_relaxed) / 2), std::memory_order_relaxed);
}

// As it did the last times. One that came late is rung for at once.
bool NodeRank::comes_soon(int rank) const {
  return std::chrono::nanoseconds(node_->mailbox(rank).lateness.load(std::memory_order_relaxed)) <= grace_;
}

// It has come, and sleeps until it is activated: every moment of grace would be one that its caller waits.
bool NodeRank::waits_for_activation(int rank) const {
  return node_->mailbox(rank).awaits.load(std::memory_order_relaxed) != 0;
}

// `rung` before the look at the bell: if the receiver is awake, and goes without having seen the activation, it sees this (news). It only
// rises: of this rank's two threads the one that took an older version out may come here later.
void NodeRank::ring_for(Mailbox& mailbox, int dimension, Version version) {
  auto& rung = mailbox.rung[dimension];
  for (Version seen = rung.load(); seen < version && !rung.compare_exchange_weak(seen, version);) {
  }
  mailbox.bell.ring();
}

void NodeRank::put_off(int dimension, Version version) {
  unrung_[dimension].store(version);
  const std::int64_t due = in_ns(Clock::now() + grace_);
  if (due < due_.load()) due_.store(due);
}

std::optional<Activation> NodeRank::poll_activation() {
  Mailbox& mailbox = own();
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    if (const Version version = mailbox.activated[dimension].load(); version > activated_[dimension]) {
      activated_[dimension] = version;
      mailbox.taken[dimension].store(version, std::memory_order_relaxed);  // saves a system call, decides nothing
      return Activation{version, dimension};
    }
    if (const Version version = mailbox.solo_from[dimension].load(); version < solo_from_[dimension]) {
      solo_from_[dimension] = version;
      return Activation{version, dimension, true};
    }
  }
  return std::nullopt;
}

void NodeRank::ring_due(std::int64_t now) {
  if (const std::int64_t due = due_.load(); due == kNever || due > now) return;
  due_.store(kNever);
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    const Version version = unrung_[dimension].exchange(kNoVersion);
    if (version == kNoVersion) continue;
    Mailbox& mailbox = node_->mailbox(neighbour(world_size(), rank_, dimension));
    if (mailbox.taken[dimension].load(std::memory_order_relaxed) < version) ring_for(mailbox, dimension, version);
  }
}

// -- what members of a version share ----------------------------------------------------------------------------------------

void NodeRank::lay_out(const Execution& execution, std::size_t chunk_items, std::size_t moved) {
  execution_ = execution;
  running_ = true;
  met_ = false;
  tag_ = tag_of(execution.version);
  chunk_items_ = chunk_items;
  chunks_ = (execution.count + chunk_items_ - 1) / chunk_items_;
  // Not before the first execution: only then every rank has entered, and with it its cores are known.
  const int cores = node_->cores();
  fits_ = world_size() <= cores;
  const int ranks_per_core = (world_size() + cores - 1) / cores;
  patience_ = fits_ || (chunks_ == 1 && ranks_per_core <= kFewRanks) ? kPatience : Clock::duration::zero();
  // A sync of all ranks moves more than the groups in between, which activations are for: it says nothing about them.
  if (!graced_ || static_cast<int>(execution.members.size()) < world_size()) {
    grace_ = fits_ ? kGrace : shared_grace(moved, ranks_per_core);
    graced_ = true;
  }
}

// In this order: a member of an older version sees the new tag before it could take a chunk, and all see the counters and what the desk
// says once they see `begun`.
void NodeRank::begin_at_desk(std::uint64_t filled, std::int64_t contribution, std::int64_t target) {
  Desk& desk = node_->desk(rank_);
  desk.next_chunk.store(tag_);
  desk.chunks_done.store(tag_);
  desk.filled.store(tag_ | filled);
  desk.contribution.store(contribution, std::memory_order_relaxed);
  desk.stamp.store(execution_.stamp, std::memory_order_relaxed);
  desk.target.store(target, std::memory_order_relaxed);
  desk.divisor.store(execution_.divisor, std::memory_order_relaxed);
  // Sequentially consistent: of members that begin at the same time at least one sees that all have.
  desk.begun.store(execution_.version);
  met_ = all_begun();
}

bool NodeRank::all_begun() const {
  return std::all_of(execution_.members.begin(), execution_.members.end(),
                     [&](int member) { return node_->desk(member).begun.load() >= execution_.version; });
}

std::optional<std::size_t> NodeRank::take_chunk() {
  auto& next = node_->desk(execution_.members.front()).next_chunk;
  std::uint64_t seen = next.load();
  while ((seen & ~kLower) == tag_ && (seen & kLower) < chunks_) {
    if (!may_take(seen & kLower)) break;
    if (next.compare_exchange_weak(seen, seen + 1)) return static_cast<std::size_t>(seen & kLower);
  }
  return std::nullopt;
}

bool NodeRank::complete(std::size_t parts) const {
  const std::uint64_t done = node_->desk(execution_.members.front()).chunks_done.load();
  return (done & ~kLower) != tag_ || (done & kLower) == parts;
}

// Release: whoever sees the last part counted sees the data of all.
void NodeRank::count_done(std::size_t parts) {
  auto& done = node_->desk(execution_.members.front()).chunks_done;
  if ((done.fetch_add(1) & kLower) + 1 == parts) ring_members();
}

std::string NodeRank::standing() {
  if (!running_ || !met_) return "";
  const Desk& first = node_->desk(execution_.members.front());
  const std::uint64_t taken = first.next_chunk.load(), done = first.chunks_done.load();
  if ((done & ~kLower) != tag_ || (taken & ~kLower) != tag_) return "all chunks are reduced";
  return std::to_string(done & kLower) + " of " + std::to_string(chunks_) + " chunks are reduced, " +
         std::to_string((taken & kLower) - (done & kLower)) + " in the hands of members";
}

void NodeRank::ring_members() const {
  for (const int member : execution_.members) {
    if (member != rank_) node_->mailbox(member).bell.ring();
  }
}

// -- sleeping -----------------------------------------------------------------------------------------------------------

// A process that was killed says nothing. Before a sleep, since only who waits has to know; ranks that end in order do so when all have
// closed.
void NodeRank::look_for_the_dead() {
  const auto now = Clock::now();
  if (now - looked_ < kLook || node_->all_closed()) return;
  looked_ = now;
  for (int rank = 0; rank < world_size(); ++rank) {
    // Once more whether all have closed: then it has ended in order, since the first look.
    if (node_->is_gone(rank) && !node_->all_closed()) node_->fail(rank, "its process has ended without a word");
  }
}

// Whoever hands over to the progress thread leaves nothing put off: then nobody waits at this rank, and whom it activates should not either.
// Where the application sleeps, the progress thread keeps the time. It uses next to nothing of its core, so it is there as soon as something
// is due; the application, which has used its share, gets the core back from another rank that computes only milliseconds later.
std::uint32_t NodeRank::announce(Sleeper who) {
  ring_due(who == Sleeper::application ? in_ns(Clock::now()) : kNever - 1);
  if (const std::int64_t due = due_.load(); due != kNever && due != std::exchange(told_due_, due)) own().bell.ring_for(Sleeper::progress);
  look_for_the_dead();
  own().awaits.store(who == Sleeper::application && !running_, std::memory_order_relaxed);
  return own().bell.announce(who);
}

// The look at what is due comes after the caller's at the count of rings: of something put off later the ring makes it return.
void NodeRank::sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) {
  if (who == Sleeper::application) return own().bell.sleep(who, since, deadline);
  const Clock::time_point due(std::chrono::duration_cast<Clock::duration>(std::chrono::nanoseconds(due_.load())));
  own().bell.sleep(who, since, std::min(deadline, due));
  ring_due(in_ns(Clock::now()));
}

// Not whatever was posted: in a balanced run that would be an activation nearly every time, for which its sender still means to ring.
bool NodeRank::news() const {
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    if (own().rung[dimension].load() > activated_[dimension] || own().solo_from[dimension].load() < solo_from_[dimension]) return true;
  }
  return node_->has_failed();
}

// A core of its own is what a rank has if the scheduler agrees: it may have put the thread that is waited for on this very core, where a
// spin would keep it from running until patience ends. Ranks then take turns at being in each other's way for as long as a run lasts.
void NodeRank::pause(Clock::duration idle) {
#if defined(__x86_64__)
  if (fits_ && idle < kUnshared) return _mm_pause();
#endif
  ::sched_yield();
}

}  // namespace wagma
