#include "wagma/transport_local.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace wagma {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int world_size() const override { return hub_->world_size(); }

  void send_activation(int to, Activation activation) override {
    auto& mailbox = hub_->mailboxes_[to];
    {
      std::lock_guard lock(mailbox.mutex);
      mailbox.activations.push_back(activation);
      mailbox.woken = true;
    }
    mailbox.arrived.notify_one();
  }

  std::optional<Activation> poll_activation() override {
    auto& mailbox = hub_->mailboxes_[rank_];
    std::lock_guard lock(mailbox.mutex);
    if (mailbox.activations.empty()) return std::nullopt;
    const Activation activation = mailbox.activations.front();
    mailbox.activations.pop_front();
    return activation;
  }

  void begin(const Execution& execution) override {
    execution_ = execution;
    wrote_ = false;
    meeting_ = hub_->join(execution);
  }

  Progress progress() override;
  std::vector<int> missing() override;

  void announce_close(Version last_arrived) override {
    bool all = false;
    {
      std::lock_guard lock(hub_->mutex_);
      hub_->last_ = std::max(hub_->last_, last_arrived);
      all = ++hub_->closed_ == world_size();
    }
    if (all) hub_->wake_all();
  }

  std::optional<Version> poll_all_closed() override {
    std::lock_guard lock(hub_->mutex_);
    return hub_->closed_ == world_size() ? std::optional(hub_->last_) : std::nullopt;
  }

  // What is sent lies in the receiver's mailbox at once, and the hub outlives both sides.
  bool drain() override { return true; }

  void announce_failure(const std::string& message) override { hub_->fail(rank_, message); }

  bool failure_delivered() override { return true; }

  std::optional<Failure> poll_failure() override {
    std::lock_guard lock(hub_->mutex_);
    return hub_->failure_;
  }

  void abandon() noexcept override {}  // peers may still read this rank's buffers: the meeting keeps them alive

  void wait(Clock::time_point deadline) override {
    auto& mailbox = hub_->mailboxes_[rank_];
    std::unique_lock lock(mailbox.mutex);
    mailbox.arrived.wait_until(lock, deadline, [&] { return mailbox.woken; });
    mailbox.woken = false;
  }

  void wake() override { hub_->wake(rank_); }

 private:
  void reduce_slice();

  std::shared_ptr<LocalHub> hub_;
  const int rank_;
  // The execution under way; touched by the progress thread only.
  Execution execution_;
  std::shared_ptr<LocalHub::Meeting> meeting_;
  bool wrote_ = false;
};

// Sums this member's slice along the association tree and puts it into every member's target. No lock is held: all have
// begun, so every contribution is whole and stays as it is until all slices are written, and nobody else writes this slice.
void LocalTransport::reduce_slice() {
  const auto& parts = meeting_->parts;
  const int members = static_cast<int>(parts.size());
  const Slice slice = slice_of(execution_.count, members, execution_.index);
  if (slice.size() == 0) return;
  const std::size_t item = item_size(execution_.dtype), offset = slice.begin * item, bytes = slice.size() * item;
  std::vector<const void*> sources;
  for (const Execution& part : parts) sources.push_back(part.contribution + offset);
  std::byte* own = execution_.target + offset;
  tree_sum(execution_.dtype, own, sources.data(), members, slice.size());
  if (execution_.mean) divide(execution_.dtype, own, members, slice.size());
  for (const Execution& part : parts) {
    if (part.target != execution_.target) std::memcpy(part.target + offset, own, bytes);
  }
}

Progress LocalTransport::progress() {
  if (!meeting_) return {};
  auto& meeting = *meeting_;
  const std::size_t members = execution_.members.size();
  std::size_t summed = 0;
  {
    std::lock_guard lock(meeting.mutex);
    if (meeting.begun < members) return {};
    summed = meeting.summed;
  }
  if (!wrote_) {
    reduce_slice();
    wrote_ = true;
    {
      std::lock_guard lock(meeting.mutex);
      summed = ++meeting.summed;
    }
    if (summed == members) {
      for (const int member : execution_.members) hub_->wake(member);
    }
  }
  if (summed < members) return {};
  hub_->leave(execution_, meeting);
  meeting_.reset();
  execution_.owner.reset();
  return {true, true};  // all slices written means that all contributions were read
}

std::vector<int> LocalTransport::missing() {
  std::vector<int> ranks;
  if (!meeting_) return ranks;
  std::lock_guard lock(meeting_->mutex);
  for (std::size_t i = 0; i < execution_.members.size(); ++i) {
    if (!meeting_->present[i]) ranks.push_back(execution_.members[i]);
  }
  return ranks;
}

LocalHub::LocalHub(int world_size)
    : mailboxes_(static_cast<std::size_t>(std::max(0, world_size))), handed_out_(mailboxes_.size(), 0) {
  if (world_size < 1) {
    throw std::invalid_argument("world_size = " + std::to_string(world_size) + ": must be at least 1");
  }
}

std::shared_ptr<Transport> LocalHub::transport(int rank) {
  if (rank < 0 || rank >= world_size()) {
    throw std::invalid_argument("rank = " + std::to_string(rank) + ": must be from 0 to " + std::to_string(world_size() - 1));
  }
  std::lock_guard lock(mutex_);
  if (handed_out_[rank]) {
    throw std::invalid_argument("rank = " + std::to_string(rank) + ": has its transport already; one run needs one hub");
  }
  handed_out_[rank] = 1;
  return std::make_shared<LocalTransport>(shared_from_this(), rank);
}

void LocalHub::fail(int rank, const std::string& message) {
  {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = Failure{rank, message};
  }
  wake_all();
}

void LocalHub::wake(int rank) {
  auto& mailbox = mailboxes_[rank];
  {
    std::lock_guard lock(mailbox.mutex);
    mailbox.woken = true;
  }
  mailbox.arrived.notify_one();
}

void LocalHub::wake_all() {
  for (int rank = 0; rank < world_size(); ++rank) wake(rank);
}

std::shared_ptr<LocalHub::Meeting> LocalHub::join(const Execution& execution) {
  std::shared_ptr<Meeting> meeting;
  {
    std::lock_guard lock(mutex_);
    auto& entry = meetings_[{execution.version, execution.members.front()}];
    if (!entry) {
      entry = std::make_shared<Meeting>();
      entry->parts.resize(execution.members.size());
      entry->present.resize(execution.members.size(), 0);
    }
    meeting = entry;
  }
  bool complete = false;
  {
    std::lock_guard lock(meeting->mutex);
    meeting->parts[execution.index] = execution;
    meeting->present[execution.index] = 1;
    complete = ++meeting->begun == meeting->parts.size();
  }
  if (complete) {
    for (const int member : execution.members) wake(member);
  }
  return meeting;
}

void LocalHub::leave(const Execution& execution, Meeting& meeting) {
  std::size_t left = 0;
  {
    std::lock_guard lock(meeting.mutex);
    left = ++meeting.left;
  }
  if (left < execution.members.size()) return;
  std::lock_guard lock(mutex_);
  meetings_.erase({execution.version, execution.members.front()});
}

}  // namespace wagma
