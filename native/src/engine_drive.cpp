// Driving: what both threads of a rank do in turns. Nothing here waits for a peer but the loops at the end, which sleep until
// "something may have happened", so abort() can always stop an engine.
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "clock.hpp"
#include "drive_until.hpp"

namespace wagma {

namespace {
constexpr auto kNap = std::chrono::seconds(1);               // peers ring earlier; this bounds a defect in a transport
constexpr auto kFarewell = std::chrono::milliseconds(500);  // limit for telling peers of a failure
}  // namespace

// -- one round over everything that may need attention ----------------------------------------------------------------------

// Whether there was something to do.
bool Engine::serve() {
  std::optional<std::string> abort;
  {
    std::lock_guard lock(mutex_);
    abort = abort_;
  }
  if (abort) {
    tell_peers(*abort);
    throw Aborted("rank " + std::to_string(rank_) + ": the engine was aborted: " + *abort);
  }
  if (const auto failure = transport_->poll_failure()) throw PeerFailed(failure->rank, failure->message);
  bool busy = carry_out();
  busy |= take_activations();
  busy |= advance_execution();
  busy |= advance_end();
  return busy;
}

// The same; what it throws ends the engine.
bool Engine::guarded_serve() {
  if (ended()) return false;
  try {
    return serve();
  } catch (const PeerFailed&) {
    stop_with(std::current_exception());  // whoever failed has told everyone
  } catch (const Aborted&) {
    stop_with(std::current_exception());
  } catch (...) {
    std::exception_ptr failure;
    std::string message;
    try {
      rethrow_named(running_ ? "version " + std::to_string(running_->start.version) : "between versions");
    } catch (const std::exception& error) {
      failure = std::current_exception();
      message = error.what();
    }
    try {
      tell_peers(message);
    } catch (const std::exception&) {
      // The first error is the one to report; the transport is likely its cause.
    }
    stop_with(failure);
  }
  return false;
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
    } else if (const auto* solo = std::get_if<Solo>(&output)) {
      if (!finishing_) transport_->send_activation(solo->rank, {solo->version, solo->dimension, true});
    } else {
      begin(*running_);
    }
  }
}

void Engine::begin(const Begun& begun) {
  if (begun.behind) transport_->note_lateness(Clock::duration::max());
  const std::byte* contribution = begun.start.buffer == kNone ? nullptr : transport_->buffer(begun.start.buffer);
  if (config_.digests && contribution) {
    running_->record.contribution_digest = models_->digest(contribution, config_.count * item_size(config_.dtype));
  }
  Execution execution;
  execution.version = begun.start.version;
  execution.members = begun.record.members;
  const auto own = std::find(execution.members.begin(), execution.members.end(), rank_);
  execution.index = static_cast<int>(own - execution.members.begin());
  execution.contribution = contribution;
  execution.target = transport_->buffer(begun.start.target);
  execution.stamp = begun.stamp;
  execution.count = config_.count;
  execution.dtype = config_.dtype;
  execution.divisor = begun.result.divisor;
  execution.model = begun.model;
  execution.publishes_mean = begun.model && config_.schedule.is_sync(begun.start.version);
  transport_->begin(execution);
}

bool Engine::take_activations() {
  bool any = false;
  while (const auto activation = transport_->poll_activation()) {
    any = true;
    std::lock_guard lock(mutex_);
    last_sign_ = Clock::now();
    apply(activation->solo ? machine_.solo(activation->version, activation->dimension)
                           : machine_.activation(activation->version, activation->dimension));
  }
  return any;
}

bool Engine::advance_execution() {
  if (!running_) return false;
  const Progress progress = transport_->progress();
  if (!progress.summed && !progress.released) return progress.moved;
  ExecutionRecord& record = running_->record;
  Result& result = running_->result;
  result.in_model = progress.in_model;
  if (progress.summed && result.finished && result.divisor == 1) {  // a sync of one rank: what it gets by divisor 1 is a raw sum
    models_->finish(transport_->buffer(running_->start.target), record.version);
  }
  if (progress.summed && config_.digests) {
    const std::size_t item = result.finished ? item_size(config_.dtype) : accumulator_size(config_.dtype);
    record.sum_digest = models_->digest(transport_->buffer(running_->start.target), config_.count * item);
  }
  // Both events in one scope: an arrival between them would find the version executed and the next one not started, although
  // nothing is left to wait for, and start a version itself that was ready before it came.
  std::lock_guard lock(mutex_);
  last_sign_ = Clock::now();
  if (progress.summed) {
    record.completed_ns = now_ns();
    record.sequence = sequence_++;
    result_ = running_->result;
    completed_at_ = last_sign_;
    stamps_[running_->start.target] = record.version;
    apply(machine_.exec_done(record.version));
  }
  if (progress.released) {
    record.read_ns = progress.summed ? record.completed_ns : now_ns();
    if (config_.record) records_.executions.push_back(record);
    const bool was_read = running_->start.buffer != kNone;  // nobody reads the null contribution
    running_.reset();
    if (was_read) apply(machine_.read_done());
  }
  return true;
}

// The end of the run, step by step: say that this rank has closed; learn that all have; execute what is left; leave together.
bool Engine::advance_end() {
  Version arrived = kNone;
  {
    std::lock_guard lock(mutex_);
    if (!closing_ || finished_) return false;
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
  return true;
}

void Engine::tell_peers(const std::string& message) {
  const auto deadline = Clock::now() + kFarewell;
  transport_->announce_failure(message);
  while (!transport_->failure_delivered() && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Engine::stop_with(std::exception_ptr failure) {
  {
    std::lock_guard lock(mutex_);
    failure_ = std::move(failure);
  }
  transport_->abandon();  // after it: on a device that has come to a standstill this may take long, and whoever waits for it has to hear
}

bool Engine::ended() {
  std::lock_guard lock(mutex_);
  return finished_ || failure_;
}

// -- taking turns -------------------------------------------------------------------------------------------------------

// The application goes: peers ring for the progress thread from now on. What nobody will ring for, it is woken for.
void Engine::hand_over(std::unique_lock<Mutex>& drive) {
  const std::uint32_t since = transport_->announce(Sleeper::progress);
  bool work = running_.has_value() || transport_->news();
  {
    std::lock_guard lock(mutex_);
    work |= !outbox_.empty() || finished_ || failure_;
  }
  // After the unlock: before it the progress thread cannot drive, and would go back to sleep. So it may have done when a peer rang for it in
  // the meantime; that ring is spent, and shows in the count only.
  drive.unlock();
  if (work || transport_->wakes() != since) transport_->wake();
}

void Engine::run() {
  ::pthread_setname_np(::pthread_self(), "wagma-progress");
  ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);  // ns: the default of 50 us would be added to every short sleep
  while (!ended()) {
    std::uint32_t since = transport_->wakes();  // before the try: what the application leaves behind comes with a wake after it
    if (std::unique_lock drive(drive_, std::try_to_lock); drive) {
      transport_->awake();
      while (guarded_serve() && !application_wants_) {
      }
      watch();
      since = transport_->announce(Sleeper::progress);
      if (!application_wants_ && guarded_serve()) continue;
    }
    if (!ended()) transport_->sleep(Sleeper::progress, since, Clock::now() + kNap);
  }
}

}  // namespace wagma
