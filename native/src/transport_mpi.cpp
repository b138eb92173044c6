#include "wagma/transport_mpi.hpp"

#include <algorithm>
#include <thread>

namespace wagma {

namespace {

constexpr int kActivationTag = 1, kFailureTag = 2;

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

}  // namespace

// MPI_Comm_dup would wait for the last rank for ever. MPI may still write into a duplication that is given up, so it is never freed.
MPI_Comm MpiTransport::duplicate(MPI_Comm parent, Clock::time_point deadline) const {
  struct Duplication {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto* duplication = new Duplication;
  check_mpi(rank_, MPI_Comm_idup(parent, &duplication->comm, &duplication->request), "MPI_Comm_idup");
  for (int done = 0;;) {
    check_mpi(rank_, MPI_Test(&duplication->request, &done, MPI_STATUS_IGNORE), "MPI_Test");
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

MpiTransport::MpiTransport(MPI_Comm parent, Clock::time_point deadline, std::size_t longest_message) {
  int level = MPI_THREAD_SINGLE;
  check_mpi(rank_, MPI_Query_thread(&level), "MPI_Query_thread");
  if (level != MPI_THREAD_MULTIPLE) {
    throw TransportError(std::string("MPI was initialised with ") + thread_level(level) +
                         ", but the progress thread needs MPI_THREAD_MULTIPLE");
  }
  check_mpi(rank_, MPI_Comm_rank(parent, &rank_), "MPI_Comm_rank");
  check_mpi(rank_, MPI_Comm_size(parent, &world_size_), "MPI_Comm_size");
  control_ = duplicate(parent, deadline);
  data_ = duplicate(parent, deadline);
  // Errors come back as codes, which become exceptions that name the rank; the default would end the process without a word.
  check_mpi(rank_, MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(rank_, MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  exchange_.emplace(data_, rank_, longest_message);
  for (int i = 0; i < kReceives; ++i) {
    check_mpi(rank_, MPI_Recv_init(inbox_[i].data(), 2, MPI_INT64_T, MPI_ANY_SOURCE, kActivationTag, control_, &receives_[i]),
          "MPI_Recv_init");
    check_mpi(rank_, MPI_Start(&receives_[i]), "MPI_Start");
  }
  failure_in_.resize(kLongestText);
  check_mpi(rank_, MPI_Irecv(failure_in_.data(), static_cast<int>(kLongestText), MPI_CHAR, MPI_ANY_SOURCE, kFailureTag, control_,
                  &failure_receive_),
        "MPI_Irecv");
}

void MpiTransport::note_activity() { active_ = Clock::now(); }

// -- activations --------------------------------------------------------------------------------------------------------

// Synchronous sends: they complete when the receiver has matched them, which is how drain() knows that nothing is under way.
void MpiTransport::send_activation(int to, Activation activation) {
  Sent& sent = sent_.emplace_back(Sent{{activation.version, activation.dimension}, MPI_REQUEST_NULL});
  check_mpi(rank_, MPI_Issend(sent.payload.data(), 2, MPI_INT64_T, to, kActivationTag, control_, &sent.request), "MPI_Issend");
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
  check_mpi(rank_, MPI_Testsome(kReceives, receives_.data(), &count, indices.data(), MPI_STATUSES_IGNORE), "MPI_Testsome");
  for (int i = 0; i < count && count != MPI_UNDEFINED; ++i) {
    const auto& payload = inbox_[indices[i]];
    arrived_.push_back({payload[0], static_cast<int>(payload[1])});
    check_mpi(rank_, MPI_Start(&receives_[indices[i]]), "MPI_Start");
    note_activity();
  }
}

void MpiTransport::forget_sent() {
  for (auto sent = sent_.begin(); sent != sent_.end();) {
    int done = 0;
    check_mpi(rank_, MPI_Test(&sent->request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    sent = done ? sent_.erase(sent) : std::next(sent);
  }
}

// -- the end ------------------------------------------------------------------------------------------------------------

void MpiTransport::announce_close(Version last_arrived) {
  own_last_ = last_arrived;
  check_mpi(rank_, MPI_Iallreduce(&own_last_, &all_last_, 1, MPI_INT64_T, MPI_MAX, control_, &closing_), "MPI_Iallreduce");
}

std::optional<Version> MpiTransport::poll_all_closed() {
  if (!all_closed_) {
    int done = 0;
    check_mpi(rank_, MPI_Test(&closing_, &done, MPI_STATUS_IGNORE), "MPI_Test");
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
    check_mpi(rank_, MPI_Ibarrier(control_, &leaving_), "MPI_Ibarrier");
    leaving_posted_ = true;
  }
  int done = 0;
  check_mpi(rank_, MPI_Test(&leaving_, &done, MPI_STATUS_IGNORE), "MPI_Test");
  if (!done) return false;
  stop_listening();
  left_ = true;
  return true;
}

void MpiTransport::stop_listening() {
  for (MPI_Request& request : receives_) {
    check_mpi(rank_, MPI_Cancel(&request), "MPI_Cancel");
    check_mpi(rank_, MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait");  // of a cancelled receive: returns at once
    check_mpi(rank_, MPI_Request_free(&request), "MPI_Request_free");
  }
  if (failure_receive_ != MPI_REQUEST_NULL) {
    check_mpi(rank_, MPI_Cancel(&failure_receive_), "MPI_Cancel");
    check_mpi(rank_, MPI_Wait(&failure_receive_, MPI_STATUS_IGNORE), "MPI_Wait");
  }
  check_mpi(rank_, MPI_Comm_free(&control_), "MPI_Comm_free");
  check_mpi(rank_, MPI_Comm_free(&data_), "MPI_Comm_free");
}

// -- failures -----------------------------------------------------------------------------------------------------------

void MpiTransport::announce_failure(const std::string& message) {
  failure_text_ = message.substr(0, kLongestText);
  if (failure_text_.size() < message.size()) {  // not in the middle of a character: Python would refuse the whole text
    while (!failure_text_.empty() && (message[failure_text_.size()] & 0xC0) == 0x80) failure_text_.pop_back();
  }
  for (int to = 0; to < world_size_; ++to) {
    if (to == rank_ || left_) continue;
    check_mpi(rank_, MPI_Issend(failure_text_.data(), static_cast<int>(failure_text_.size()), MPI_CHAR, to, kFailureTag, control_,
                     &failures_out_.emplace_back(MPI_REQUEST_NULL)),
          "MPI_Issend");
  }
}

bool MpiTransport::failure_delivered() {
  int done = 0;
  check_mpi(rank_, MPI_Testall(static_cast<int>(failures_out_.size()), failures_out_.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
  return done != 0;
}

std::optional<Failure> MpiTransport::poll_failure() {
  if (!failure_ && !left_) {
    int done = 0;
    MPI_Status status;
    check_mpi(rank_, MPI_Test(&failure_receive_, &done, &status), "MPI_Test");
    if (done) {
      int length = 0;
      check_mpi(rank_, MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count");
      failure_ = Failure{status.MPI_SOURCE, std::string(failure_in_.data(), static_cast<std::size_t>(length))};
    }
  }
  return failure_;
}

void MpiTransport::abandon() noexcept {
  if (left_) return;
  for (MPI_Request& request : receives_) {
    take_back(request);
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);  // persistent: completing it did not free it
  }
  take_back(failure_receive_);
  if (exchange_) exchange_->abandon();
}

// -- sleeping -----------------------------------------------------------------------------------------------------------

// MPI cannot be waited for together with a wake from the application, so it is polled: without a pause but giving the core away
// while an execution moves data, then ever more rarely.
void MpiTransport::wait(Clock::time_point deadline) {
  const auto now = Clock::now();
  const auto quiet = now - std::max(active_, exchange_->active());
  if (exchange_->running() && quiet < (exchange_->all_begun() ? kTransferSpin : kSpin)) {
    std::this_thread::yield();
    return;
  }
  const auto nap = std::clamp<Clock::duration>(quiet / kNapFraction, kShortestNap, kLongestNap);
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
