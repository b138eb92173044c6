// A block in the window of an MpiExchange, on its way through the steps of its plan.
#include <algorithm>

#include "exchange_tags_mpi.hpp"
#include "wagma/exchange_mpi.hpp"

namespace wagma {

const Step& MpiExchange::step(const Block& block) const {
  const auto& steps = plan(block);
  return steps[adding(block) ? block.step : 2 * steps.size() - 1 - block.step];
}

Slice MpiExchange::placed(const Block& block, Slice part) const {
  const std::size_t begin = block.number * plans_.cut.length;
  return {begin + part.begin, begin + part.end};
}

std::byte* MpiExchange::room(const Block& block, int move) const {
  return scratch_ + static_cast<std::size_t>(block.room) * plans_.room_bytes +
         static_cast<std::size_t>(move) * step(block).kept.size() * accumulator_size(execution_.dtype);
}

// By one step at most; false if it has to wait.
bool MpiExchange::advance(std::size_t place) {
  Block& block = window_[place];
  if (over(block)) return false;
  if (!block.posted) {
    if (adding(block)) {
      if (block.room == kNoRoom && !take_room(block)) return false;
    } else if (block.lending > 0) {
      return false;
    }
    post_receives(place);
  }
  if (block.receiving > 0) return false;
  if (plans_.cut.whole && block.lending > 0) return false;  // the sum is kept and given away at once: it must not change under the message
  if (adding(block)) {
    if (!block.summing) add_up(block);
    if (block.summing && !sums_->done(block.mark)) return false;  // what the next step sends is not there yet, and the room is still read
    adding_up_ -= block.summing;
    block.summing = false;
  }
  next_step(place);
  note_activity();
  return true;
}

void MpiExchange::next_step(std::size_t place) {
  Block& block = window_[place];
  ++block.step;
  block.posted = false;
  if (!adding(block) && block.room != kNoRoom) {
    free_rooms_.push_back(block.room);
    block.room = kNoRoom;
  }
  if (!over(block)) post_sends(place);
}

// In the order of the blocks: else members could fill their rooms with different ones, each waiting for the others'.
bool MpiExchange::take_room(Block& block) {
  if (block.number != roomed_ || free_rooms_.empty()) return false;
  block.room = free_rooms_.back();
  free_rooms_.pop_back();
  ++roomed_;
  return true;
}

void MpiExchange::post_receives(std::size_t place) {
  Block& block = window_[place];
  const int moves = static_cast<int>(step(block).moves.size());
  for (int move = 0; move < moves; ++move) receive(place, move);
  block.posted = true;
}

void MpiExchange::post_sends(std::size_t place) {
  const std::vector<Move>& moves = step(window_[place]).moves;
  const int count = static_cast<int>(moves.size());
  int after = 0;  // each member begins with the one after it, so that no one is flooded
  while (after < count && moves[after].peer < execution_.index) ++after;
  for (int i = 0; i < count; ++i) send(place, (after + i) % count);
}

// What is to be added up comes into the block's room, a complete sum where it belongs.
void MpiExchange::receive(std::size_t place, int index) {
  Block& block = window_[place];
  const Move& move = step(block).moves[index];
  const bool up = adding(block);
  const Slice part = placed(block, up ? move.receive : move.send);
  if (part.size() == 0) return;  // on both sides alike
  const std::size_t item = block.step == 0 ? item_size(execution_.dtype) : accumulator_size(execution_.dtype);
  const std::size_t bytes = part.size() * item;
  std::byte* into = up ? room(block, index) : execution_.target + part.begin * item;
  const int peer = execution_.members[move.peer], tag = block_tag(execution_.version, place, up);
  MPI_Request* request = add({Kind::receive, place, index, peer, bytes});
  ++block.receiving;
  check_mpi(rank_, MPI_Irecv(into, static_cast<int>(bytes), MPI_BYTE, peer, tag, comm_, request), "MPI_Irecv");
}

// The first step gives away the contribution, all others sums out of the target.
void MpiExchange::send(std::size_t place, int index) {
  Block& block = window_[place];
  const Move& move = step(block).moves[index];
  const bool up = adding(block), first = block.step == 0;
  const Slice part = placed(block, up ? move.send : move.receive);
  if (part.size() == 0) return;
  const std::size_t item = first ? item_size(execution_.dtype) : accumulator_size(execution_.dtype);
  const std::byte* source = first ? execution_.contribution : execution_.target;
  const std::byte* from = source ? source + part.begin * item : nullptr;
  const int bytes = source ? static_cast<int>(part.size() * item) : 0;
  const int peer = execution_.members[move.peer], tag = block_tag(execution_.version, place, up);
  const bool lend = up && !first;
  MPI_Request* request = add({lend ? Kind::lend : Kind::send, place, index, peer, 0});
  ++block.sending;
  if (lend) ++block.lending;
  check_mpi(rank_, MPI_Isend(from, bytes, MPI_BYTE, peer, tag, comm_, request), "MPI_Isend");
}

// What the peers gave and the own part, in the order of the members, into the target. Nothing to add up: not `summing` afterwards.
void MpiExchange::add_up(Block& block) {
  const Step& now = step(block);
  if (now.kept.size() == 0) return;
  const bool first = block.step == 0;
  const DType sums = execution_.dtype == DType::float64 ? DType::float64 : DType::float32;
  const std::size_t begin = placed(block, now.kept).begin;
  std::byte* target = execution_.target + begin * accumulator_size(execution_.dtype);
  const std::byte* own = target;
  if (first) own = execution_.contribution ? execution_.contribution + begin * item_size(execution_.dtype) : nullptr;
  const int moves = static_cast<int>(now.moves.size());
  sources_.clear();
  for (int move = 0; move < moves; ++move) {
    const bool null = first && null_[static_cast<std::size_t>(block.room * moves + move)];
    sources_.push_back(null ? nullptr : room(block, move));
  }
  const auto after = std::find_if(now.moves.begin(), now.moves.end(), [&](const Move& move) { return move.peer > execution_.index; });
  sources_.insert(sources_.begin() + (after - now.moves.begin()), own);
  block.mark = sums_->add_up(first ? execution_.dtype : sums, sources_, target, now.kept.size());
  block.summing = true;
  ++adding_up_;
  ++additions_;
}

}  // namespace wagma
