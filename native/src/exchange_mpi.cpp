// An execution from its begin to its release; what happens to a block is in exchange_blocks_mpi.cpp.
#include "wagma/exchange_mpi.hpp"

#include <algorithm>
#include <bit>

#include "exchange_tags_mpi.hpp"

namespace wagma {

namespace {
constexpr auto kTurn = std::chrono::microseconds(500);  // of one call, plus a step
}

void check_mpi(int rank, int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw TransportError("rank " + std::to_string(rank) + ": " + call + ": " + std::string(text, static_cast<std::size_t>(length)));
}

void take_back(MPI_Request& request) noexcept {
  if (request == MPI_REQUEST_NULL) return;
  int done = 0;
  MPI_Cancel(&request);
  MPI_Test(&request, &done, MPI_STATUS_IGNORE);
}

void MpiExchange::note_activity() { active_ = Clock::now(); }

void MpiExchange::begin(const Execution& execution) {
  execution_ = execution;
  running_ = true;
  summed_ = completing_ = false;
  finished_ = roomed_ = entered_ = 0;
  laid_out_ = false;
  post_begun();
  if (!sums_->spares_passive()) lay_out();
  note_activity();
}

// By index: all, unless some are to be spared. Every member comes to the same: each has said whether it is fresh, to all.
std::vector<int> MpiExchange::adding() const {
  const int members = static_cast<int>(execution_.members.size());
  std::vector<int> fresh;
  for (int member = 0; member < members && sums_->spares_passive(); ++member) {
    if (fresh_[member]) fresh.push_back(member);
  }
  const bool possible = !fresh.empty() && execution_.members.size() <= sums_->most_sources();
  return possible ? fresh : everybody(members);
}

// Plans and rooms for this execution, and what is given away first. Plans of large groups are long, but as short as the list of messages.
// Where members are spared it is known only when all have begun who they are.
void MpiExchange::lay_out() {
  const int members = static_cast<int>(execution_.members.size());
  plans_ = plans_of(execution_.count, accumulator_size(execution_.dtype), members, execution_.index, adding());
  const std::size_t moves = plans_.full.front().moves.size();  // every step has as many
  if (moves >= sums_->most_sources()) {
    throw TransportError("rank " + std::to_string(rank_) + ": version " + std::to_string(execution_.version) + " has a group of " +
                         std::to_string(members) + " ranks, whose models lie on devices: must be at most " +
                         std::to_string(sums_->most_sources()) + ", or a power of two");
  }
  window_.assign(plans_.cut.window, {});
  null_.assign(plans_.cut.rooms * moves, 0);
  free_rooms_.clear();
  for (int room = static_cast<int>(plans_.cut.rooms); room-- > 0;) free_rooms_.push_back(room);
  make_scratch(plans_.room_bytes * plans_.cut.rooms);
  laid_out_ = true;
  enter_blocks();
}

void MpiExchange::reserve(std::size_t bytes, int members) {
  std::size_t needed = 0;
  const auto count_in = [&](std::size_t item, int length, int adding) {
    const Plans plans = plans_of(bytes / item, item, length, 0, everybody(adding));
    needed = std::max(needed, plans.room_bytes * plans.cut.rooms);
  };
  for (const std::size_t item : {accumulator_size(DType::float32), accumulator_size(DType::float64)}) {
    for (int length = 2; length <= members && bytes >= item; ++length) {
      const bool direct = static_cast<std::size_t>(length) <= sums_->most_sources();
      for (int adding = 1; adding < length && direct && sums_->spares_passive(); ++adding) count_in(item, length, adding);
      if (direct || std::has_single_bit(static_cast<unsigned>(length))) count_in(item, length, length);
    }
  }
  make_scratch(needed);
}

// Nothing is under way: all messages of the last execution are through, and all that was given to a device is done.
void MpiExchange::make_scratch(std::size_t bytes) {
  if (bytes <= scratch_bytes()) return;
  scratch_ = nullptr;
  scratch_bytes_.store(0, std::memory_order_relaxed);
  scratch_ = sums_->scratch(bytes);
  scratch_bytes_.store(bytes, std::memory_order_relaxed);
}

void MpiExchange::post_begun() {
  const int members = static_cast<int>(execution_.members.size());
  const int tag = begun_tag(execution_.version);
  to_begin_ = begun_out_ = members - 1;
  fresh_.assign(execution_.members.size(), 0);
  char& own = fresh_[execution_.index] = execution_.stamp == execution_.version;
  for (int step = 1; step < members; ++step) {
    const int at = (execution_.index + step) % members;  // each begins with another one: no one is flooded
    const int peer = execution_.members[at];
    check_mpi(rank_, MPI_Irecv(&fresh_[at], 1, MPI_CHAR, peer, tag, comm_, add({Kind::begun_in, 0, 0, peer, 0})), "MPI_Irecv");
    check_mpi(rank_, MPI_Isend(&own, 1, MPI_CHAR, peer, tag, comm_, add({Kind::begun_out, 0, 0, peer, 0})), "MPI_Isend");
  }
}

// Where the request of a new message belongs.
MPI_Request* MpiExchange::add(const Message& message) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<int>(requests_.size()));
    requests_.push_back(MPI_REQUEST_NULL);
    messages_.emplace_back();
    indices_.emplace_back();
    statuses_.emplace_back();
  }
  const int at = unused_.back();
  unused_.pop_back();
  messages_[at] = message;
  return &requests_[at];
}

// One call for all messages: each call into MPI looks at the network first, and that is what it costs.
void MpiExchange::test() {
  if (unused_.size() == requests_.size()) return;
  int count = 0;
  check_mpi(rank_, MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, indices_.data(), statuses_.data()),
            "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return;
  for (int i = 0; i < count; ++i) {
    completed(messages_[indices_[i]], statuses_[i]);
    unused_.push_back(indices_[i]);
  }
  note_activity();
}

void MpiExchange::completed(const Message& message, const MPI_Status& status) {
  if (message.kind == Kind::begun_in) --to_begin_;
  if (message.kind == Kind::begun_out) --begun_out_;
  if (message.kind == Kind::begun_in || message.kind == Kind::begun_out) return;
  Block& block = window_[message.place];
  if (message.kind == Kind::lend) --block.lending;
  if (message.kind != Kind::receive) {
    --block.sending;
    return;
  }
  --block.receiving;
  int bytes = 0;
  check_mpi(rank_, MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
  const bool null = bytes == 0 && block.step == 0;
  if (block.step == 0) null_[static_cast<std::size_t>(block.room) * step(block).moves.size() + message.move] = null;
  if (!null && static_cast<std::size_t>(bytes) != message.expected) {
    throw TransportError("rank " + std::to_string(rank_) + ": rank " + std::to_string(message.peer) + " sent " + std::to_string(bytes) +
                         " bytes of version " + std::to_string(execution_.version) + ": must be " +
                         std::to_string(message.expected) + ", the members do not agree on the model");
  }
}

// Goes on while something moves, since what a step needs has often come already, but not for long: the caller has activations to
// forward as well.
Progress MpiExchange::progress() {
  if (!running_) return {};
  const auto enough = Clock::now() + kTurn;
  bool moved = true;
  while (moved && active_ < enough) {
    test();
    moved = false;
    if (!laid_out_ && to_begin_ > 0) break;
    if (!laid_out_) lay_out();
    for (std::size_t number = finished_; number < entered_ && active_ < enough; ++number) moved |= advance(number % plans_.cut.window);
    finish_blocks();
    moved |= enter_blocks();
  }
  Progress progress;
  if (!summed_ && to_begin_ == 0 && complete()) progress.summed = summed_ = true;
  // A block's own sends were through before it was finished; what is left are those that say "begun".
  if (summed_ && begun_out_ == 0) {
    progress.released = true;
    running_ = false;
  }
  return progress;
}

// What is given away first needs neither a room nor a peer.
bool MpiExchange::enter_blocks() {
  const std::size_t before = entered_;
  for (; entered_ < std::min(plans_.cut.blocks, finished_ + plans_.cut.window); ++entered_) {
    const std::size_t place = entered_ % plans_.cut.window;
    window_[place] = {};
    window_[place].number = entered_;
    post_sends(place);
  }
  return entered_ > before;
}

// In the order of the blocks, because finished models of 16-bit types are shorter than their sums: block i then lies where the sums
// of earlier blocks were (and, i = 0, its own, from which it is made front to back), which must have become models before.
void MpiExchange::finish_blocks() {
  for (; finished_ < entered_; ++finished_) {
    const Block& block = window_[finished_ % plans_.cut.window];
    if (!over(block) || block.sending > 0) return;
    if (execution_.divisor == 1) continue;
    const Slice all = placed(block, {0, std::min(plans_.cut.length, execution_.count - finished_ * plans_.cut.length)});
    std::byte* model = execution_.target + all.begin * item_size(execution_.dtype);
    const std::byte* sums = execution_.target + all.begin * accumulator_size(execution_.dtype);
    sums_->divide(execution_.dtype, model, sums, execution_.divisor, all.size());
  }
}

// Whether the target holds the result. The first time that all blocks are finished, that is what is left to be done.
bool MpiExchange::complete() {
  if (!laid_out_ || finished_ < plans_.cut.blocks) return false;
  if (!completing_) complete_ = sums_->complete(execution_.target, execution_.version);
  completing_ = true;
  if (!sums_->done(complete_)) return false;
  completing_ = false;
  return true;
}

std::vector<int> MpiExchange::missing() {
  std::vector<int> ranks;
  const Kind wanted = to_begin_ > 0 ? Kind::begun_in : Kind::receive;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL && messages_[i].kind == wanted) ranks.push_back(messages_[i].peer);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

// What comes before all members have begun says less than who has not: a member that has begun gives its part away at once.
std::string MpiExchange::standing() const {
  if (!running_ || to_begin_ > 0) return "";
  std::string text = std::to_string(finished_) + " of " + std::to_string(plans_.cut.blocks) + " blocks are done";
  if (adding_up_ > 0) text += ", " + std::to_string(adding_up_) + " are being added up on the device";
  std::vector<int> waiting;  // who has not taken what was sent to them
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const Kind kind = messages_[i].kind;
    if (requests_[i] != MPI_REQUEST_NULL && kind != Kind::begun_in && kind != Kind::receive) waiting.push_back(messages_[i].peer);
  }
  if (!waiting.empty()) {
    text += ", " + std::to_string(waiting.size()) + " messages are on their way to rank";
    std::sort(waiting.begin(), waiting.end());
    waiting.erase(std::unique(waiting.begin(), waiting.end()), waiting.end());
    if (waiting.size() > 1) text += "s";
    for (std::size_t i = 0; i < waiting.size(); ++i) text += (i ? ", " : " ") + std::to_string(waiting[i]);
  }
  return text;
}

void MpiExchange::abandon() noexcept {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (messages_[i].kind == Kind::begun_in || messages_[i].kind == Kind::receive) take_back(requests_[i]);
  }
}

}  // namespace wagma
