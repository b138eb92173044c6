// The progress thread: it answers for the rank while the application computes. It never waits for a peer, only for "something may
// have happened", so abort() can always stop it.
#include <algorithm>
#include <utility>

#include "buffers.hpp"
#include "clock.hpp"
#include "wagma/digest.hpp"
#include "wagma/engine.hpp"

namespace wagma {

namespace {
constexpr auto kNap = std::chrono::milliseconds(200);      // transports wake it earlier; this bounds a defect in one
constexpr auto kFarewell = std::chrono::milliseconds(500);  // limit for telling peers of a failure
}  // namespace

void Engine::run() {
  try {
    while (serve()) {
    }
  } catch (const PeerFailed&) {
    stop_with(std::current_exception());  // whoever failed has told everyone
  } catch (const std::exception& error) {
    const auto failure = std::current_exception();
    try {
      tell_peers(error.what());
    } catch (const std::exception&) {
      // The first error is the one to report; the transport is likely its cause.
    }
    stop_with(failure);
  }
}

// One round over everything that may need attention; false to end the thread.
bool Engine::serve() {
  std::optional<std::string> abort;
  {
    std::lock_guard lock(mutex_);
    abort = abort_;
    if (finished_) return false;
  }
  if (abort) {
    tell_peers(*abort);
    stop_with(std::make_exception_ptr(ProtocolError("rank " + std::to_string(rank_) + ": the engine was aborted: " + *abort)));
    return false;
  }
  if (const auto failure = transport_->poll_failure()) throw PeerFailed(failure->rank, failure->message);
  bool busy = carry_out();
  busy |= take_activations();
  busy |= advance_execution();
  busy |= advance_end();
  answer_question();
  if (!busy) transport_->wait(Clock::now() + kNap);
  return true;
}

// Outputs are carried out in the order in which the machine gave them, whichever thread fed it the event.
bool Engine::carry_out() {
  bool any = false;
  for (;;) {
    Output output;
    {
      std::lock_guard lock(mutex_);
      if (outbox_.empty()) return any;
      output = outbox_.front();
      outbox_.pop_front();
      if (std::holds_alternative<Start>(output)) running_ = starting_;
    }
    any = true;
    if (const auto* forward = std::get_if<Forward>(&output)) {
      if (!finishing_) transport_->send_activation(forward->rank, {forward->version, forward->dimension});
    } else {
      begin(std::get<Start>(output));
    }
  }
}

void Engine::begin(const Start& start) {
  target_ = start.target;
  const std::byte* contribution = buffers_->at(start.buffer);
  if (config_.digests) {
    running_->contribution_digest = digest(contribution, config_.count * item_size(config_.dtype));
  }
  Execution execution;
  execution.version = start.version;
  execution.members = running_->members;
  const auto own = std::find(execution.members.begin(), execution.members.end(), rank_);
  execution.index = static_cast<int>(own - execution.members.begin());
  execution.contribution = contribution;
  execution.target = buffers_->at(start.target);
  execution.count = config_.count;
  execution.dtype = config_.dtype;
  execution.mean = config_.schedule.is_sync(start.version);
  execution.owner = buffers_;
  transport_->begin(execution);
}

bool Engine::take_activations() {
  bool any = false;
  while (const auto activation = transport_->poll_activation()) {
    any = true;
    std::lock_guard lock(mutex_);
    last_sign_ = Clock::now();
    apply(machine_.activation(activation->version, activation->dimension));
  }
  return any;
}

bool Engine::advance_execution() {
  if (!running_) return false;
  const Progress progress = transport_->progress();
  if (progress.summed) {
    if (config_.digests) {
      running_->sum_digest = digest(buffers_->at(target_), config_.count * item_size(config_.dtype));
    }
  }
  if (!progress.summed && !progress.released) return false;
  // Both events in one scope: an arrival between them would find the version executed and the next one not started, although
  // nothing is left to wait for, and start a version itself that was ready before it came.
  std::lock_guard lock(mutex_);
  last_sign_ = Clock::now();
  if (progress.summed) {
    running_->completed_ns = now_ns();
    running_->sequence = sequence_++;
    apply(machine_.exec_done(running_->version));
  }
  if (progress.released) {
    running_->read_ns = progress.summed ? running_->completed_ns : now_ns();
    if (config_.record) records_.executions.push_back(*running_);
    running_.reset();
    apply(machine_.read_done());
  }
  return true;
}

// The end of the run, step by step: say that this rank has closed; learn that all have; execute what is left; leave together.
bool Engine::advance_end() {
  Version arrived = kNone;
  {
    std::lock_guard lock(mutex_);
    if (!closing_) return false;
    arrived = machine_.arrived();
  }
  if (!close_announced_) {
    transport_->announce_close(arrived);
    close_announced_ = true;
    return true;
  }
  if (!finishing_) {
    const auto last = transport_->poll_all_closed();
    if (!last) return false;
    finishing_ = true;
    std::lock_guard lock(mutex_);
    last_sign_ = Clock::now();
    apply(machine_.finish(*last));
    return true;
  }
  {
    std::lock_guard lock(mutex_);
    if (!machine_.done() || !outbox_.empty()) return false;
  }
  if (!transport_->drain()) return false;
  std::lock_guard lock(mutex_);
  finished_ = true;
  released_.notify_all();
  return true;
}

void Engine::answer_question() {
  {
    std::lock_guard lock(mutex_);
    if (!missing_asked_) return;
  }
  auto missing = running_ ? transport_->missing() : std::vector<int>{};
  std::lock_guard lock(mutex_);
  missing_asked_ = false;
  missing_ = std::move(missing);
  released_.notify_all();
}

void Engine::tell_peers(const std::string& message) {
  const auto deadline = Clock::now() + kFarewell;
  transport_->announce_failure(message);
  while (!transport_->failure_delivered() && Clock::now() < deadline) {
    transport_->wait(std::min<Clock::time_point>(deadline, Clock::now() + std::chrono::milliseconds(1)));
  }
}

void Engine::stop_with(std::exception_ptr failure) {
  transport_->abandon();
  std::lock_guard lock(mutex_);
  failure_ = std::move(failure);
  released_.notify_all();
}

}  // namespace wagma
