#include "wagma/transport_node.hpp"

#include <algorithm>

#include "cache.hpp"
#include "chunks.hpp"

namespace wagma {

namespace {

// Large enough that taking a chunk (tens of nanoseconds, more where ranks compete) is nothing beside reducing it, small enough that the
// last one, which the others wait for, takes some microseconds, and that it is rarely cut in two by the scheduler.
constexpr std::size_t kChunkBytes = 128 * 1024;

}  // namespace

void NodeTransport::begin(const Execution& execution) {
  const std::size_t members = execution.members.size(), item = item_size(execution.dtype);
  const std::size_t moved = 2 * members * execution.count * item;
  lay_out(execution, kChunkBytes / item, moved);
  stores_ = stores_for(moved);
  present_ = execution.model != nullptr;
  willing_ = present_ && goes_directly();
  window_ = fits_ ? kWindow : kSharedWindow;
  direct_ = counted_ = false;
  told_ = true;
  filled_ = present_ ? 0 : chunks_;
  averaged_ = 0;
  const auto offset = [&](const std::byte* pointer) { return pointer ? pointer - node_->segment().data() : std::ptrdiff_t{-1}; };
  // Of the contribution members see with `begun` as much as `filled` says.
  begin_at_desk((willing_ ? kPresent : 0) | filled_, offset(execution.contribution), offset(execution.target));
  // The others help only where there is more than one chunk to take; else they are woken when all is done.
  if (met_ && chunks_ > 1) ring_members();
}

void NodeTransport::reduce_chunk(std::size_t chunk) {
  const std::size_t begin = chunk * chunk_items_, count = std::min(chunk_items_, execution_.count - begin);
  const std::size_t model_item = item_size(execution_.dtype), sum_item = accumulator_size(execution_.dtype);
  std::byte* base = node_->segment().data();
  sources_.clear();
  targets_.clear();
  divisors_.clear();
  for (const int member : execution_.members) {
    const Desk& desk = node_->desk(member);
    const std::int64_t contribution = desk.contribution.load(std::memory_order_relaxed);
    const int divisor = desk.divisor.load(std::memory_order_relaxed);
    sources_.push_back(contribution < 0 ? nullptr : base + contribution + begin * model_item);
    targets_.push_back(base + desk.target.load(std::memory_order_relaxed) + begin * (divisor == 1 ? sum_item : model_item));
    divisors_.push_back(divisor);
  }
  const int members = static_cast<int>(sources_.size());
  reduce(execution_.dtype, sources_.data(), members, targets_.data(), divisors_.data(), members, count,
         stores_);
}

Progress NodeTransport::progress() {
  if (has_put_off()) ring_due(in_ns(Clock::now()));
  if (!running_) return {};
  if (!met_) {
    const bool fills = filled_ < chunks_ && (!willing_ || filled_ < window_);
    if (fills) fill_chunk();
    if (!(met_ = all_begun())) return {.moved = fills};
  }
  if (direct_ || (direct_ = willing_ && all_present())) return progress_directly();
  if (filled_ < chunks_ || !told_) {  // somebody is late, or it is not for the direct way: members take turns as always
    while (filled_ < chunks_) {
      if (has_put_off()) ring_due(in_ns(Clock::now()));  // of other groups: a whole model takes longer than the grace
      fill_chunk();
    }
    told_ = true;
    // Of one chunk there is nothing to share: whoever fills last finds all filled, takes it in this very round, and rings when it is done.
    if (chunks_ > 1) ring_members();
  }
  bool moved = false;
  while (const auto chunk = take_chunk()) {
    moved = true;
    if (has_put_off()) ring_due(in_ns(Clock::now()));  // of other groups
    reduce_chunk(*chunk);
    count_done(chunks_);  // reduce ends with a store fence
  }
  if (!complete(chunks_)) return {.moved = moved};
  running_ = false;
  return {.summed = true, .released = true};
}

std::vector<int> NodeTransport::missing() {
  std::vector<int> ranks;
  if (!running_) return ranks;
  // The chunk that cannot be taken before all have filled it; with another version's tag on the first desk there is none left.
  const std::uint64_t next = node_->desk(execution_.members.front()).next_chunk.load();
  const std::uint64_t wanted = direct_ ? averaged_ : (next & ~kLower) == tag_ ? next & kLower : chunks_;
  for (const int member : execution_.members) {
    const Desk& desk = node_->desk(member);
    const std::uint64_t filled = desk.filled.load();
    // Not begun; or begun, and the others wait for what it has yet to fill; or, in the direct way, for it to be through.
    const bool here = met_ && (filled & ~kLower) == tag_;
    const bool behind = here && (((filled & kCount) < chunks_ && (filled & kCount) <= wanted) || (counted_ && (filled & kThrough) == 0));
    if (desk.begun.load() < execution_.version || (member != rank_ && behind)) ranks.push_back(member);
  }
  return ranks;
}

std::string NodeTransport::standing() {
  if (!running_ || !met_ || !direct_ || complete(execution_.members.size())) return NodeRank::standing();
  return std::to_string(averaged_) + " of " + std::to_string(chunks_) + " chunks are averaged";
}

}  // namespace wagma
