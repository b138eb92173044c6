#include "wagma/transport_device.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "chunks.hpp"
#include "keep.hpp"

namespace wagma {

namespace {

// A present member's share is cut into so many chunks: the last one of a member that is slower (its device is shared, or further away from
// the memory) is then a small part of the whole. A launch takes microseconds, so none is less than kLeastBytes but the last.
constexpr std::size_t kChunksOfShare = 4;
constexpr std::size_t kLeastBytes = std::size_t{1} << 20;
constexpr std::size_t kUnit = 256;  // elements: chunks begin at addresses that wide accesses like
// So many kernels a member has under way: while one runs the next is there already, and the others find chunks left to take.
constexpr std::size_t kMostFlights = 2;
constexpr auto kNap = std::chrono::microseconds(50);  // between two looks at a kernel that is under way
constexpr auto kLongNap = 4 * kNap;                   // the same where no application waits for it: each look is a call of the driver's
constexpr auto kFarewell = std::chrono::milliseconds(500);
constexpr double kEndLimit = 1.0;  // seconds that an end waits for kernels
constexpr auto kFarewellNap = std::chrono::milliseconds(1);

std::size_t chunk_items_of(const Execution& execution) {
  const std::size_t share = execution.count / execution.members.size() / kChunksOfShare;
  const std::size_t items = std::max(share, kLeastBytes / item_size(execution.dtype));
  return (items + kUnit - 1) / kUnit * kUnit;
}

std::string name_of(const Device& device) {
  const std::string kind = device.kind();
  return kind == "cuda" ? "CUDA IPC on " + device.name() : "IPC on " + device.name();
}

}  // namespace

DeviceNodeTransport::DeviceNodeTransport(std::shared_ptr<Node> node, int rank, std::shared_ptr<DeviceBuffers> buffers,
                                         const std::vector<std::string>& addresses)
    : NodeRank(std::move(node), rank), buffers_(std::move(buffers)), name_(name_of(*buffers_->device())) {
  const std::size_t ranks = static_cast<std::size_t>(world_size());
  if (ranks > Device::kMostMembers) {
    throw TransportError("rank " + std::to_string(rank) + ": " + std::to_string(ranks) + " ranks on one machine: must be at most " +
                         std::to_string(Device::kMostMembers) + " where models are reduced on devices");
  }
  if (addresses.size() != ranks) {
    throw std::invalid_argument("rank " + std::to_string(rank) + ": " + std::to_string(addresses.size()) + " addresses: must be " +
                                std::to_string(ranks) + ", one for each rank");
  }
  Device& device = *buffers_->device();
  queue_ = device.queue(true);
  bases_.assign(ranks, nullptr);
  try {
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      bases_[peer] = static_cast<int>(peer) == rank ? buffers_->base() : device.open(addresses[peer]);
    }
  } catch (...) {
    leave();
    throw;
  }
}

DeviceNodeTransport::~DeviceNodeTransport() {
  if (!is_idle()) {  // it may still write into others' memory: it must not hear that it can be freed, nor may this rank's be
    keep(std::move(queue_));
    keep(std::move(buffers_));
    return;
  }
  queue_.reset();
  leave();
  const auto deadline = Clock::now() + kFarewell;
  while (!all_left() && Clock::now() < deadline) std::this_thread::sleep_for(kFarewellNap);
  if (!all_left()) keep(std::move(buffers_));  // somebody has it open still: never freed, rather than freed too early
}

// Waits for what is under way; not if the device is broken.
bool DeviceNodeTransport::is_idle() noexcept {
  try {
    queue_->wait(queue_->mark(), kEndLimit);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

// -- executions ---------------------------------------------------------------------------------------------------------

std::int64_t DeviceNodeTransport::index_of(const std::byte* buffer) const {
  if (!buffer) return -1;
  return (buffer - buffers_->base()) / static_cast<std::ptrdiff_t>(buffers_->offset(1));
}

void DeviceNodeTransport::begin(const Execution& execution) {
  lay_out(execution, chunk_items_of(execution), 0);
  decided_ = taking_ = false;
  const bool present = execution.contribution && execution.stamp == execution.version;
  begin_at_desk(present ? kPresent : 0, index_of(execution.contribution), index_of(execution.target));
  if (met_) ring_members();
}

// Once all have begun. A member whose desk is another version's has gone on: then nothing is left to take.
bool DeviceNodeTransport::takes_chunks() const {
  bool anybody = false;
  for (const int member : execution_.members) {
    const std::uint64_t word = node_->desk(member).filled.load();
    if ((word & ~kLower) != tag_) return false;
    if ((word & kPresent) == 0) continue;
    if (member == rank_) return true;
    anybody = true;
  }
  return !anybody;
}

void DeviceNodeTransport::launch(std::size_t chunk) {
  Reduction reduction;
  reduction.dtype = execution_.dtype;
  reduction.begin = chunk * chunk_items_;
  reduction.count = std::min(chunk_items_, execution_.count - reduction.begin);
  for (const int member : execution_.members) {
    const Desk& desk = node_->desk(member);
    const auto place = [&](const Atomic<std::int64_t>& number) {
      return bases_[member] + buffers_->offset(static_cast<int>(number.load(std::memory_order_relaxed)));
    };
    const auto stamp = [&](std::byte* buffer) { return reinterpret_cast<std::int64_t*>(buffer + buffers_->stamp_offset()); };
    if (desk.contribution.load(std::memory_order_relaxed) < 0) {
      reduction.sources.push_back({});
    } else {
      std::byte* const source = place(desk.contribution);
      reduction.sources.push_back({source, stamp(source), desk.stamp.load(std::memory_order_relaxed)});
    }
    std::byte* const target = place(desk.target);
    reduction.targets.push_back({target, stamp(target), desk.divisor.load(std::memory_order_relaxed)});
  }
  if (reduction.begin + reduction.count == execution_.count) reduction.stamp = execution_.version;
  queue_->reduce(reduction);
  flights_.push_back({queue_->mark(), chunk});
}

// What is over is counted. Desks are those of this version as long as a chunk is not.
bool DeviceNodeTransport::land() {
  bool any = false;
  for (; !flights_.empty() && queue_->reached(flights_.front().mark); flights_.pop_front()) {
    any = true;
    check_stamps();
    count_done(chunks_);
  }
  return any;
}

void DeviceNodeTransport::check_stamps() const {
  const auto wrong = queue_->wrong_stamp();
  if (!wrong) return;
  const int member = execution_.members[wrong->source];
  const auto text = [](Version version) { return version < 0 ? std::string("the initial one") : std::to_string(version); };
  throw TransportError("rank " + std::to_string(rank_) + ": what rank " + std::to_string(member) + " contributes to version " +
                       std::to_string(execution_.version) + " has the stamp " + text(wrong->found) + ": must be " +
                       text(node_->desk(member).stamp.load(std::memory_order_relaxed)) + "; its buffer was overwritten");
}

Progress DeviceNodeTransport::progress() {
  if (has_put_off()) ring_due(in_ns(Clock::now()));
  if (!running_) return {};
  if (!met_ && !(met_ = all_begun())) return {};
  if (!std::exchange(decided_, true)) taking_ = takes_chunks();
  bool moved = land();
  while (taking_ && flights_.size() < kMostFlights) {
    const auto chunk = take_chunk();
    if (!chunk) break;
    launch(*chunk);
    moved = true;
  }
  flying_.store(!flights_.empty(), std::memory_order_relaxed);
  if (!flights_.empty() || !complete(chunks_)) return {.moved = moved};
  running_ = false;
  return {.summed = true, .released = true};
}

std::vector<int> DeviceNodeTransport::missing() {
  std::vector<int> ranks;
  if (!running_) return ranks;
  for (const int member : execution_.members) {
    if (node_->desk(member).begun.load() < execution_.version) ranks.push_back(member);
  }
  if (!ranks.empty() || complete(chunks_)) return ranks;
  // All have begun: it is those who take chunks that are waited for.
  bool anybody = false;
  for (const bool present : {true, false}) {
    for (const int member : execution_.members) {
      const std::uint64_t word = node_->desk(member).filled.load();
      if (member != rank_ && !anybody && ((word & kPresent) != 0) == present) ranks.push_back(member);
    }
    anybody = !ranks.empty() || taking_;
  }
  return ranks;
}

std::string DeviceNodeTransport::standing() {
  std::string text = NodeRank::standing();
  if (running_ && !flights_.empty()) {
    text += "; its device has " + std::to_string(flights_.size()) + " of them, from number " + std::to_string(flights_.front().chunk) + " on";
  }
  return text;
}

// Nobody rings when a kernel is over.
void DeviceNodeTransport::sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) {
  if (flying_.load(std::memory_order_relaxed)) {
    deadline = std::min<Clock::time_point>(deadline, Clock::now() + (who == Sleeper::application ? kNap : kLongNap));
  }
  NodeRank::sleep(who, since, deadline);
}

// -- the end ------------------------------------------------------------------------------------------------------------

void DeviceNodeTransport::leave() noexcept {
  if (std::exchange(left_, true)) return;
  for (std::size_t peer = 0; peer < bases_.size(); ++peer) {
    if (static_cast<int>(peer) != rank_ && bases_[peer]) buffers_->device()->close(bases_[peer]);
  }
  node_->desk(rank_).left.store(1);
  node_->ring_all();
}

// A rank that has died keeps nothing open.
bool DeviceNodeTransport::all_left() const {
  for (int rank = 0; rank < world_size(); ++rank) {
    if (node_->desk(rank).left.load() == 0 && !node_->is_gone(rank)) return false;
  }
  return true;
}

// Kernels are under way here only where a version was given up.
bool DeviceNodeTransport::drain() {
  if (!flights_.empty() && !queue_->reached(flights_.back().mark)) return false;
  leave();
  return all_left();
}

// With kernels under way the destructor does it, which waits for them.
void DeviceNodeTransport::abandon() noexcept {
  if (flights_.empty()) leave();
}

}  // namespace wagma
