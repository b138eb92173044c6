#include "wagma/transport_mpi.hpp"

#include <algorithm>
#include <utility>

namespace wagma {

namespace {

constexpr int kActivationTag = 1, kFailureTag = 2;

// Without a pause: in an execution, shortly after something happened; and once all members have begun, while data moves in large
// pieces that complete rarely, but not for ever (a member may have been stopped).
constexpr Clock::duration kSpin = std::chrono::microseconds(100);
constexpr Clock::duration kTransferSpin = std::chrono::milliseconds(500);

}  // namespace

void MpiTransport::listen() {
  for (int i = 0; i < kReceives; ++i) {
    check_mpi(rank_, MPI_Recv_init(inbox_[i].data(), static_cast<int>(inbox_[i].size()), MPI_INT64_T, MPI_ANY_SOURCE, kActivationTag,
                                   control_, &requests_[i]),
              "MPI_Recv_init");
    check_mpi(rank_, MPI_Start(&requests_[i]), "MPI_Start");
  }
  failure_in_.resize(kLongestText);
  check_mpi(rank_, MPI_Irecv(failure_in_.data(), static_cast<int>(kLongestText), MPI_CHAR, MPI_ANY_SOURCE, kFailureTag, control_,
                             &requests_[kFailure]),
            "MPI_Irecv");
}

// Whatever is asked for first in a round of the engine looks for all: activations, failures and the end.
void MpiTransport::look() {
  looked_ = true;
  if (left_) return;
  forget_sent();
  std::array<int, kRequests> indices;
  std::array<MPI_Status, kRequests> statuses;
  int count = 0;
  check_mpi(rank_, MPI_Testsome(kRequests, requests_.data(), &count, indices.data(), statuses.data()), "MPI_Testsome");
  for (int i = 0; i < count && count != MPI_UNDEFINED; ++i) completed(indices[i], statuses[i]);
}

void MpiTransport::completed(int request, const MPI_Status& status) {
  note_activity();
  if (request < kReceives) {
    const auto& [version, dimension, solo] = inbox_[request];
    arrived_.push_back({version, static_cast<int>(dimension), solo != 0});
    check_mpi(rank_, MPI_Start(&requests_[request]), "MPI_Start");
  } else if (request == kFailure) {
    int length = 0;
    check_mpi(rank_, MPI_Get_count(&status, MPI_CHAR, &length), "MPI_Get_count");
    failure_ = Failure{status.MPI_SOURCE, std::string(failure_in_.data(), static_cast<std::size_t>(length))};
  }
}

// -- activations --------------------------------------------------------------------------------------------------------

// Synchronous sends: they complete when the receiver has matched them, which is how drain() knows that nothing is under way.
void MpiTransport::send_activation(int to, Activation activation) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<int>(sent_.size()));
    sent_.emplace_back();
    sending_.push_back(MPI_REQUEST_NULL);
    sent_now_.push_back(0);
  }
  const int at = unused_.back();
  unused_.pop_back();
  Message& message = sent_[at];
  message = {activation.version, activation.dimension, activation.solo};
  check_mpi(rank_, MPI_Issend(message.data(), static_cast<int>(message.size()), MPI_INT64_T, to, kActivationTag, control_, &sending_[at]),
            "MPI_Issend");
  note_activity();
}

void MpiTransport::forget_sent() {
  if (unused_.size() == sent_.size()) return;
  int count = 0;
  check_mpi(rank_, MPI_Testsome(static_cast<int>(sending_.size()), sending_.data(), &count, sent_now_.data(), MPI_STATUSES_IGNORE),
            "MPI_Testsome");
  if (count > 0) unused_.insert(unused_.end(), sent_now_.begin(), sent_now_.begin() + count);  // MPI_UNDEFINED is negative
}

std::optional<Activation> MpiTransport::poll_activation() {
  if (arrived_.empty() && !std::exchange(looked_, false)) {
    look();
    looked_ = false;
  }
  if (arrived_.empty()) return std::nullopt;
  const Activation activation = arrived_.front();
  arrived_.pop_front();
  return activation;
}

// -- executions ---------------------------------------------------------------------------------------------------------

void MpiTransport::begin(const Execution& execution) {
  exchange_->begin(execution);
  note_exchange();
}

Progress MpiTransport::progress() {
  const Progress progress = exchange_->progress();
  note_exchange();
  return progress;
}

void MpiTransport::note_exchange() {
  const bool transfer = exchange_->all_begun() && exchange_->moving();
  const auto spin = !exchange_->running() ? Clock::duration::zero() : transfer ? kTransferSpin : kSpin;
  computing_.store(exchange_->computing(), std::memory_order_relaxed);
  spin_.store(spin.count(), std::memory_order_relaxed);
  const auto active = exchange_->active().time_since_epoch().count();
  if (active > active_.load(std::memory_order_relaxed)) active_.store(active, std::memory_order_relaxed);
}

// -- the end ------------------------------------------------------------------------------------------------------------

void MpiTransport::announce_close(Version last_arrived) {
  own_last_ = last_arrived;
  check_mpi(rank_, MPI_Iallreduce(&own_last_, &all_last_, 1, MPI_INT64_T, MPI_MAX, control_, &requests_[kClosing]), "MPI_Iallreduce");
  close_announced_ = true;
}

// Whoever asks for this asks for failures and activations, too, and those calls look.
std::optional<Version> MpiTransport::poll_all_closed() {
  return close_announced_ && requests_[kClosing] == MPI_REQUEST_NULL ? std::optional(all_last_) : std::nullopt;
}

// Once every rank's activations were received and every rank is in the barrier, nothing is under way to anyone: nobody sends
// activations after it has learnt that all have closed. (The consensus of Hoefler, Siebert and Lumsdaine, PPoPP 2010.)
bool MpiTransport::drain() {
  if (left_) return true;
  look();
  if (!leaving_) {
    if (unused_.size() != sent_.size()) return false;
    check_mpi(rank_, MPI_Ibarrier(control_, &requests_[kLeaving]), "MPI_Ibarrier");
    leaving_ = true;
    return false;
  }
  if (requests_[kLeaving] != MPI_REQUEST_NULL) return false;
  stop_listening();
  left_ = true;
  return true;
}

void MpiTransport::stop_listening() {
  for (int i = 0; i <= kFailure; ++i) {
    MPI_Request& request = requests_[i];
    if (request == MPI_REQUEST_NULL) continue;
    check_mpi(rank_, MPI_Cancel(&request), "MPI_Cancel");
    check_mpi(rank_, MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait");  // of a cancelled receive: returns at once
    if (request != MPI_REQUEST_NULL) check_mpi(rank_, MPI_Request_free(&request), "MPI_Request_free");  // persistent
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
  check_mpi(rank_, MPI_Testall(static_cast<int>(failures_out_.size()), failures_out_.data(), &done, MPI_STATUSES_IGNORE),
            "MPI_Testall");
  return done != 0;
}

std::optional<Failure> MpiTransport::poll_failure() {
  looked_ = std::exchange(about_to_nap_, false);
  if (!failure_ && !looked_) look();
  return failure_;
}

void MpiTransport::abandon() noexcept {
  if (left_) return;
  for (int i = 0; i <= kFailure; ++i) {
    take_back(requests_[i]);
    if (requests_[i] != MPI_REQUEST_NULL && i < kReceives) MPI_Request_free(&requests_[i]);  // persistent: completing did not free it
  }
  if (exchange_) exchange_->abandon();
}

}  // namespace wagma
