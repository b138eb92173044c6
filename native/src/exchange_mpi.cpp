// An execution from its begin to its release; what happens to a block is in exchange_blocks_mpi.cpp.
#include "wagma/exchange_mpi.hpp"

#include <algorithm>

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
  summed_ = false;
  finished_ = roomed_ = entered_ = 0;
  lay_out();
  post_begun();
  enter_blocks();
  note_activity();
}

// Plans and rooms for this execution. Plans of large groups are long, but as short as the list of messages.
void MpiExchange::lay_out() {
  const int members = static_cast<int>(execution_.members.size());
  const std::size_t item = accumulator_size(execution_.dtype);
  cut_ = cut_of(execution_.count, item, members);
  plan_ = plan_of(cut_.length, members, execution_.index, cut_.whole);
  last_plan_ = plan_of(execution_.count - (cut_.blocks - 1) * cut_.length, members, execution_.index, cut_.whole);
  window_.assign(cut_.window, {});
  constexpr std::size_t kLine = 64;
  room_bytes_ = (std::max(room_of(plan_), room_of(last_plan_)) * item + kLine - 1) / kLine * kLine;
  null_.assign(cut_.rooms * plan_.front().moves.size(), 0);  // every step has as many moves
  free_rooms_.clear();
  for (int room = static_cast<int>(cut_.rooms); room-- > 0;) free_rooms_.push_back(room);
  const std::size_t needed = room_bytes_ * cut_.rooms;
  if (needed > scratch_bytes()) {
    scratch_.reset(new std::byte[needed]);  // left as it is: touched first by the message that it is for
    scratch_bytes_.store(needed, std::memory_order_relaxed);
  }
}

void MpiExchange::post_begun() {
  const int members = static_cast<int>(execution_.members.size());
  const int tag = begun_tag(execution_.version);
  to_begin_ = begun_out_ = members - 1;
  for (int step = 1; step < members; ++step) {
    const int peer = execution_.members[(execution_.index + step) % members];  // each begins with another one: no one is flooded
    check_mpi(rank_, MPI_Irecv(nullptr, 0, MPI_BYTE, peer, tag, comm_, add({Kind::begun_in, 0, 0, peer, 0})), "MPI_Irecv");
    check_mpi(rank_, MPI_Isend(nullptr, 0, MPI_BYTE, peer, tag, comm_, add({Kind::begun_out, 0, 0, peer, 0})), "MPI_Isend");
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
  Block& block = window_[message.place];
  switch (message.kind) {
    case Kind::begun_in: --to_begin_; return;
    case Kind::begun_out: --begun_out_; return;
    case Kind::lend: --block.lending; [[fallthrough]];
    case Kind::send: --block.sending; return;
    case Kind::receive: --block.receiving;
  }
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
    for (std::size_t number = finished_; number < entered_ && active_ < enough; ++number) moved |= advance(number % cut_.window);
    finish_blocks();
    moved |= enter_blocks();
  }
  Progress progress;
  if (!summed_ && finished_ == cut_.blocks && to_begin_ == 0) progress.summed = summed_ = true;
  // A block's own sends were through before it was finished; what is left are the empty messages.
  if (summed_ && begun_out_ == 0) {
    progress.released = true;
    running_ = false;
  }
  return progress;
}

// What is given away first needs neither a room nor a peer.
bool MpiExchange::enter_blocks() {
  const std::size_t before = entered_;
  for (; entered_ < std::min(cut_.blocks, finished_ + cut_.window); ++entered_) {
    const std::size_t place = entered_ % cut_.window;
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
    const Block& block = window_[finished_ % cut_.window];
    if (!over(block) || block.sending > 0) return;
    if (execution_.divisor == 1) continue;
    const Slice all = placed(block, {0, std::min(cut_.length, execution_.count - finished_ * cut_.length)});
    std::byte* model = execution_.target + all.begin * item_size(execution_.dtype);
    const std::byte* sums = execution_.target + all.begin * accumulator_size(execution_.dtype);
    merge_into(execution_.dtype, model, model, sums, 0, execution_.divisor, all.size());
  }
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
  std::string text = std::to_string(finished_) + " of " + std::to_string(cut_.blocks) + " blocks are done";
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
