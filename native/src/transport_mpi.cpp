#include "wagma/transport_mpi.hpp"

#include <algorithm>
#include <thread>

namespace wagma {

namespace {

constexpr int kActivationTag = 1, kFailureTag = 2;
constexpr int kBegun = 0, kContribution = 1, kResult = 2, kPhases = 3;
constexpr int kTagVersions = 4096;  // the standard guarantees tags up to 32767

// Without a pause: in an execution, shortly after something happened; and once all members have begun, while data moves in large
// pieces that complete rarely, but not for ever (a member may have been stopped).
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr auto kTransferSpin = std::chrono::milliseconds(500);
// A nap is an eighth of the time since something last happened, within these bounds: so polling adds at most an eighth to any
// delay of a peer, and an idle rank costs about a percent of a core.
constexpr int kNapFraction = 8;
constexpr auto kShortestNap = std::chrono::microseconds(20);
constexpr auto kLongestNap = std::chrono::microseconds(1000);

const char* thread_level(int level) {
  switch (level) {
    case MPI_THREAD_SINGLE:
      return "MPI_THREAD_SINGLE";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    default:
      return "an unknown level";
  }
}

int tag_of(Version version, int phase) { return static_cast<int>(version % kTagVersions) * kPhases + phase; }

}  // namespace

// MPI_Comm_dup would wait for the last rank for ever. MPI may still write into a duplication that is given up, so it is never freed.
MPI_Comm MpiTransport::duplicate(MPI_Comm parent, Clock::time_point deadline) const {
  struct Duplication {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto* duplication = new Duplication;
  check(MPI_Comm_idup(parent, &duplication->comm, &duplication->request), "MPI_Comm_idup");
  for (int done = 0;;) {
    check(MPI_Test(&duplication->request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) break;
    if (Clock::now() >= deadline) {
      throw CollectiveTimeout("rank " + std::to_string(rank_) + ": not all " + std::to_string(world_size_) +
                              " ranks of the communicator came to create the collective in time");
    }
    std::this_thread::sleep_for(kShortestNap);
  }
  const MPI_Comm comm = duplication->comm;
  delete duplication;
  return comm;
}

std::shared_ptr<Transport> MpiTransport::connect(MPI_Comm parent, double timeout_s, std::size_t longest_message) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
  return {new MpiTransport(parent, deadline, longest_message), [](MpiTransport* transport) {
            if (transport->left_) delete transport;
          }};
}

MpiTransport::MpiTransport(MPI_Comm parent, Clock::time_point deadline, std::size_t longest_message)
    : longest_message_(longest_message) {
  int level = MPI_THREAD_SINGLE;
  check(MPI_Query_thread(&level), "MPI_Query_thread");
  if (level != MPI_THREAD_MULTIPLE) {
    throw TransportError(std::string("MPI was initialised with ") + thread_level(level) +
                         ", but the progress thread needs MPI_THREAD_MULTIPLE");
  }
  check(MPI_Comm_rank(parent, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(parent, &world_size_), "MPI_Comm_size");
  control_ = duplicate(parent, deadline);
  data_ = duplicate(parent, deadline);
  // Errors come back as codes, which become exceptions that name the rank; the default would end the process without a word.
  check(MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  for (int i = 0; i < kReceives; ++i) {
    check(MPI_Recv_init(inbox_[i].data(), 2, MPI_INT64_T, MPI_ANY_SOURCE, kActivationTag, control_, &receives_[i]),
          "MPI_Recv_init");
    check(MPI_Start(&receives_[i]), "MPI_Start");
  }
  failure_in_.resize(kLongestText);
  check(MPI_Irecv(failure_in_.data(), static_cast<int>(kLongestText), MPI_CHAR, MPI_ANY_SOURCE, kFailureTag, control_,
                  &failure_receive_),
        "MPI_Irecv");
}

void MpiTransport::check(int code, const char* call) const {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw TransportError("rank " + std::to_string(rank_) + ": " + call + ": " + std::string(text, static_cast<std::size_t>(length)));
}

void MpiTransport::note_activity() { active_ = Clock::now(); }

// -- activations --------------------------------------------------------------------------------------------------------

// Synchronous sends: they complete when the receiver has matched them, which is how drain() knows that nothing is under way.
void MpiTransport::send_activation(int to, Activation activation) {
  Sent& sent = sent_.emplace_back(Sent{{activation.version, activation.dimension}, MPI_REQUEST_NULL});
  check(MPI_Issend(sent.payload.data(), 2, MPI_INT64_T, to, kActivationTag, control_, &sent.request), "MPI_Issend");
  note_activity();
}

std::optional<Activation> MpiTransport::poll_activation() {
  if (arrived_.empty()) take_messages();
  if (arrived_.empty()) return std::nullopt;
  const Activation activation = arrived_.front();
  arrived_.pop_front();
  return activation;
}

void MpiTransport::take_messages() {
  forget_sent();
  std::array<int, kReceives> indices{};
  int count = 0;
  check(MPI_Testsome(kReceives, receives_.data(), &count, indices.data(), MPI_STATUSES_IGNORE), "MPI_Testsome");
  for (int i = 0; i < count && count != MPI_UNDEFINED; ++i) {
    const auto& payload = inbox_[indices[i]];
    arrived_.push_back({payload[0], static_cast<int>(payload[1])});
    check(MPI_Start(&receives_[indices[i]]), "MPI_Start");
    note_activity();
  }
}

void MpiTransport::forget_sent() {
  for (auto sent = sent_.begin(); sent != sent_.end();) {
    int done = 0;
    check(MPI_Test(&sent->request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    sent = done ? sent_.erase(sent) : std::next(sent);
  }
}

// -- executions ---------------------------------------------------------------------------------------------------------

void MpiTransport::post_send(Transfer& transfer, const std::byte* data, std::size_t bytes, int to, int tag) {
  std::size_t at = 0;
  do {
    const std::size_t length = std::min(longest_message_, bytes - at);
    transfer.peers.push_back(to);
    check(MPI_Isend(data + at, static_cast<int>(length), MPI_BYTE, to, tag, data_,
                    &transfer.requests.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Isend");
    ++transfer.open;
    at += length;
  } while (at < bytes);
}

void MpiTransport::post_receive(Transfer& transfer, std::byte* data, std::size_t bytes, int from, int tag) {
  std::size_t at = 0;
  do {
    const std::size_t length = std::min(longest_message_, bytes - at);
    transfer.peers.push_back(from);
    check(MPI_Irecv(data + at, static_cast<int>(length), MPI_BYTE, from, tag, data_,
                    &transfer.requests.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Irecv");
    ++transfer.open;
    at += length;
  } while (at < bytes);
}

void MpiTransport::begin(const Execution& execution) {
  execution_ = execution;
  stage_ = Stage::gathering;
  summed_ = false;
  begun_in_ = contributions_in_ = results_in_ = out_ = {};
  const int members = static_cast<int>(execution.members.size());
  const std::size_t item = item_size(execution.dtype);
  const auto tag = [&](int phase) { return tag_of(execution.version, phase); };
  own_ = slice_of(execution.count, members, execution.index);
  const std::size_t own_bytes = own_.size() * item;
  scratch_.resize(std::max(scratch_.size(), static_cast<std::size_t>(members - 1) * own_bytes));
  std::byte* into = scratch_.data();
  // All receives before the first send: a message that finds its receive posted goes straight to its place.
  for (int i = 0; i < members; ++i) {
    if (i == execution.index) continue;
    const int member = execution.members[i];
    const Slice theirs = slice_of(execution.count, members, i);
    post_receive(begun_in_, nullptr, 0, member, tag(kBegun));
    if (own_bytes > 0) post_receive(contributions_in_, into, own_bytes, member, tag(kContribution));
    if (theirs.size() > 0) {
      post_receive(results_in_, execution.target + theirs.begin * item, theirs.size() * item, member, tag(kResult));
    }
    into += own_bytes;
  }
  for (int step = 1; step < members; ++step) {
    const int i = (execution.index + step) % members;  // each member begins with another one, so that no one is flooded
    const int member = execution.members[i];
    const Slice theirs = slice_of(execution.count, members, i);
    post_send(out_, nullptr, 0, member, tag(kBegun));
    if (theirs.size() == 0) continue;
    post_send(out_, execution.contribution + theirs.begin * item, theirs.size() * item, member, tag(kContribution));
  }
  note_activity();
}

void MpiTransport::test(Transfer& transfer) {
  if (transfer.open == 0) return;
  completed_.resize(std::max(completed_.size(), transfer.requests.size()));
  int count = 0;
  check(MPI_Testsome(static_cast<int>(transfer.requests.size()), transfer.requests.data(), &count, completed_.data(),
                     MPI_STATUSES_IGNORE),
        "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return;
  transfer.open -= static_cast<std::size_t>(count);
  note_activity();
}

// The own slice along the association tree, own contribution at its place among the others'; then to everyone.
void MpiTransport::reduce() {
  const int members = static_cast<int>(execution_.members.size());
  const std::size_t item = item_size(execution_.dtype), bytes = own_.size() * item;
  std::byte* result = execution_.target + own_.begin * item;
  if (bytes == 0) return;
  std::vector<const void*> sources;
  const std::byte* next = scratch_.data();
  for (int i = 0; i < members; ++i) {
    sources.push_back(i == execution_.index ? execution_.contribution + own_.begin * item : next);
    if (i != execution_.index) next += bytes;
  }
  tree_sum(execution_.dtype, result, sources.data(), members, own_.size());
  if (execution_.mean) divide(execution_.dtype, result, members, own_.size());
  for (int step = 1; step < members; ++step) {
    post_send(out_, result, bytes, execution_.members[(execution_.index + step) % members], tag_of(execution_.version, kResult));
  }
  note_activity();
}

Progress MpiTransport::progress() {
  if (stage_ == Stage::idle) return {};
  test(begun_in_);
  test(contributions_in_);
  test(results_in_);
  test(out_);
  if (stage_ == Stage::gathering) {
    if (contributions_in_.open > 0) return {};
    reduce();
    stage_ = Stage::spreading;
  }
  Progress progress;
  if (!summed_ && results_in_.open == 0 && begun_in_.open == 0) progress.summed = summed_ = true;
  // The result is sent out of the target, so the buffers are free only when these sends are through, too.
  if (summed_ && out_.open == 0) {
    progress.released = true;
    stage_ = Stage::idle;
    execution_.owner.reset();
  }
  return progress;
}

std::vector<int> MpiTransport::missing() {
  std::vector<int> ranks;
  if (stage_ == Stage::idle) return ranks;
  const Transfer& transfer = begun_in_.open > 0 ? begun_in_ : contributions_in_.open > 0 ? contributions_in_ : results_in_;
  for (std::size_t i = 0; i < transfer.requests.size(); ++i) {
    if (transfer.requests[i] != MPI_REQUEST_NULL) ranks.push_back(transfer.peers[i]);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

// -- the end ------------------------------------------------------------------------------------------------------------

void MpiTransport::announce_close(Version last_arrived) {
  own_last_ = last_arrived;
  check(MPI_Iallreduce(&own_last_, &all_last_, 1, MPI_INT64_T, MPI_MAX, control_, &closing_), "MPI_Iallreduce");
}

std::optional<Version> MpiTransport::poll_all_closed() {
  if (!all_closed_) {
    int done = 0;
    check(MPI_Test(&closing_, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done) return std::nullopt;
    all_closed_ = true;
    note_activity();
  }
  return all_last_;
}

// Once every rank's activations were received and every rank is in the barrier, nothing is under way to anyone: nobody sends
// activations after it has learnt that all have closed. (The consensus of Hoefler, Siebert and Lumsdaine, PPoPP 2010.)
bool MpiTransport::drain() {
  if (left_) return true;
  if (!leaving_posted_) {
    forget_sent();
    if (!sent_.empty()) return false;
    check(MPI_Ibarrier(control_, &leaving_), "MPI_Ibarrier");
    leaving_posted_ = true;
  }
  int done = 0;
  check(MPI_Test(&leaving_, &done, MPI_STATUS_IGNORE), "MPI_Test");
  if (!done) return false;
  stop_listening();
  left_ = true;
  return true;
}

void MpiTransport::stop_listening() {
  for (MPI_Request& request : receives_) {
    check(MPI_Cancel(&request), "MPI_Cancel");
    check(MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait");  // of a cancelled receive: returns at once
    check(MPI_Request_free(&request), "MPI_Request_free");
  }
  if (failure_receive_ != MPI_REQUEST_NULL) {
    check(MPI_Cancel(&failure_receive_), "MPI_Cancel");
    check(MPI_Wait(&failure_receive_, MPI_STATUS_IGNORE), "MPI_Wait");
  }
  check(MPI_Comm_free(&control_), "MPI_Comm_free");
  check(MPI_Comm_free(&data_), "MPI_Comm_free");
}

// -- failures -----------------------------------------------------------------------------------------------------------

void MpiTransport::announce_failure(const std::string& message) {
  failure_text_ = message.substr(0, kLongestText);
  if (failure_text_.size() < message.size()) {  // not in the middle of a character: Python would refuse the whole text
    while (!failure_text_.empty() && (message[failure_text_.size()] & 0xC0) == 0x80) failure_text_.pop_back();
  }
  for (int to = 0; to < world_size_; ++to) {
    if (to == rank_ || left_) continue;
    check(MPI_Issend(failure_text_.data(), static_cast<int>(failure_text_.size()), MPI_CHAR, to, kFailureTag, control_,
                     &failures_out_.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Issend");
  }
}

bool MpiTransport::failure_delivered() {
  int done = 0;
  check(MPI_Testall(static_cast<int>(failures_out_.size()), failures_out_.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
  return done != 0;
}

std::optional<Failure> MpiTransport::poll_failure() {
  if (!failure_ && !left_) {
    int done = 0;
    MPI_Status status;
    check(MPI_Test(&failure_receive_, &done, &status), "MPI_Test");
    if (done) {
      int length = 0;
      check(MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count");
      failure_ = Failure{status.MPI_SOURCE, std::string(failure_in_.data(), static_cast<std::size_t>(length))};
    }
  }
  return failure_;
}

// Receives can be taken back, sends cannot; a receive that a message has met already completes some time later, into memory that is
// never freed. Errors are of no interest any more.
void MpiTransport::abandon() noexcept {
  if (left_) return;
  const auto take_back = [](MPI_Request& request) {
    if (request == MPI_REQUEST_NULL) return;
    int done = 0;
    MPI_Cancel(&request);
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  };
  for (MPI_Request& request : receives_) {
    take_back(request);
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);  // persistent: completing it did not free it
  }
  take_back(failure_receive_);
  for (Transfer* transfer : {&begun_in_, &contributions_in_, &results_in_}) {
    for (MPI_Request& request : transfer->requests) take_back(request);
  }
}

// -- sleeping -----------------------------------------------------------------------------------------------------------

// MPI cannot be waited for together with a wake from the application, so it is polled: without a pause but giving the core away
// while an execution moves data, then ever more rarely.
void MpiTransport::wait(Clock::time_point deadline) {
  const auto now = Clock::now();
  if (stage_ != Stage::idle && now - active_ < (begun_in_.open == 0 ? kTransferSpin : kSpin)) {
    std::this_thread::yield();
    return;
  }
  const auto nap = std::clamp<Clock::duration>((now - active_) / kNapFraction, kShortestNap, kLongestNap);
  std::unique_lock lock(mutex_);
  rouse_.wait_until(lock, std::min(deadline, now + nap), [&] { return woken_; });
  woken_ = false;
}

void MpiTransport::wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  rouse_.notify_one();
}

}  // namespace wagma
