// The direct way, for few members that all have arrived (with a core each, or a model of many chunks): every member averages for itself, straight out of all
// contributions into its caller's array. A contribution is copied out of that array chunk by chunk just before it is needed, so that the
// second look at each of them finds it in a cache. Nothing goes through the targets (but at a sync, whose mean each
// publishes next), and nobody has a part that others wait for longest.
//
// Where one is late, or there are more, members share the work instead (transport_node.cpp), which reads each contribution once in all
// and not once a member.
//
// Which way is taken is the same for all, as it is read from what all show: a member is present if its word in Desk::filled carries the
// version's tag and the flag, which never change while the version runs. If the word has another tag, that member has gone on; then the
// version is complete, and was shared, because in the direct way nobody goes on before all have counted themselves through.
#include <algorithm>

#include "chunks.hpp"
#include "wagma/transport_node.hpp"

namespace wagma {

namespace {

// Each member reads all contributions: with more members that costs more than what it saves.
constexpr std::size_t kMostMembers = 4;

}  // namespace

// Not together with one that is known to be late: then the contribution is filled at once, and shared. Where ranks share cores, each
// member has to be given one again and again, which a model of a few chunks is not worth.
bool NodeTransport::goes_directly() const {
  const auto& members = execution_.members;
  return members.size() <= kMostMembers && (fits_ || chunks_ > kSharedWindow) &&
         std::all_of(members.begin(), members.end(), [&](int member) { return member == rank_ || comes_soon(member); });
}

bool NodeTransport::all_present() const {
  return std::all_of(execution_.members.begin(), execution_.members.end(), [&](int member) {
    const std::uint64_t word = node_->desk(member).filled.load();
    return (word & ~kLower) == tag_ && (word & kPresent) != 0;
  });
}

// Acquires what the members have filled. One that has gone on counts as filled: nobody can take a chunk any more then.
bool NodeTransport::all_filled(std::size_t chunk) const {
  return std::all_of(execution_.members.begin(), execution_.members.end(), [&](int member) {
    const std::uint64_t word = node_->desk(member).filled.load();
    return (word & ~kLower) != tag_ || (word & kCount) > chunk;
  });
}

void NodeTransport::fill_chunk() {
  const std::size_t item = item_size(execution_.dtype), begin = filled_ * chunk_items_;
  const std::size_t bytes = std::min(chunk_items_, execution_.count - begin) * item;
  // The contribution is this rank's own buffer, which nobody reads beyond what is filled.
  copy(const_cast<std::byte*>(execution_.contribution) + begin * item, execution_.model + begin * item, bytes, Stores::cached);
  ++filled_;
  told_ = false;
  node_->desk(rank_).filled.store(tag_ | (willing_ ? kPresent : 0) | filled_);
}

void NodeTransport::average_chunk() {
  const std::size_t item = item_size(execution_.dtype), begin = averaged_ * chunk_items_;
  const std::size_t count = std::min(chunk_items_, execution_.count - begin);
  sources_.clear();
  for (const int member : execution_.members) {
    const std::int64_t offset = node_->desk(member).contribution.load(std::memory_order_relaxed);
    sources_.push_back(node_->segment().data() + offset + begin * item);
  }
  targets_.clear();
  if (execution_.model) targets_.push_back(execution_.model + begin * item);
  if (!execution_.model || execution_.publishes_mean) targets_.push_back(execution_.target + begin * item);
  divisors_.assign(targets_.size(), execution_.divisor);
  reduce(execution_.dtype, sources_.data(), static_cast<int>(sources_.size()), targets_.data(), divisors_.data(),
         static_cast<int>(targets_.size()), count, Stores::cached);
  ++averaged_;
}

Progress NodeTransport::progress_directly() {
  bool any = false;
  for (bool moved = true; moved; any |= moved) {
    moved = false;
    if (has_put_off()) ring_due(in_ns(Clock::now()));  // of other groups
    if (filled_ < chunks_ && filled_ < averaged_ + window_) {
      fill_chunk();
      moved = true;
    }
    if (averaged_ < filled_ && all_filled(averaged_)) {
      average_chunk();
      moved = true;
    }
  }
  if (averaged_ == chunks_ && !counted_) {
    counted_ = true;
    told_ = true;
    auto& done = node_->desk(execution_.members.front()).chunks_done;
    done.fetch_add(1);
    // After it: whoever dies in between is not waited for. A later look finds this version's tag on the desk, or another one's.
    node_->desk(rank_).filled.store(tag_ | kPresent | kThrough | filled_);
    ring_members();
  }
  // Not for each chunk: a member that sleeps has looked for what this one had then, and waits for more.
  if (!told_) {
    told_ = true;
    ring_members();
  }
  if (!complete(execution_.members.size())) return {.moved = any};
  running_ = false;
  return {.summed = true, .released = true, .in_model = execution_.model != nullptr};
}

// The rest is averaged into the target. What is averaged already is taken over from the model: once all have counted themselves through,
// the contributions are no longer there to do it again.
bool NodeTransport::withdraw() {
  if (!running_ || !execution_.model) return false;
  const std::size_t averaged = std::min(averaged_ * chunk_items_, execution_.count);
  if (averaged > 0) copy(execution_.target, execution_.model, averaged * item_size(execution_.dtype), Stores::cached);
  while (filled_ < chunks_) fill_chunk();
  ring_members();
  execution_.model = nullptr;
  return true;
}

}  // namespace wagma
