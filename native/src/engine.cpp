// The application's side of the engine; the progress thread's side is in engine_progress.cpp.
#include "wagma/engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <utility>

#include "buffers.hpp"
#include "clock.hpp"
#include "wagma/digest.hpp"

namespace wagma {

namespace {

constexpr auto kTick = std::chrono::milliseconds(50);    // how often a wait looks for Ctrl-C
constexpr auto kAnswer = std::chrono::seconds(1);        // limit for the progress thread to say who is missing
constexpr double kLongestTimeout = 1e7;                  // seconds; more would overflow nothing but makes no sense

std::string listed(const std::vector<int>& ranks) {
  constexpr std::size_t kShown = 16;
  std::ostringstream text;
  text << (ranks.size() == 1 ? "rank " : "ranks ");
  for (std::size_t i = 0; i < std::min(ranks.size(), kShown); ++i) text << (i ? ", " : "") << ranks[i];
  if (ranks.size() > kShown) text << " and " << ranks.size() - kShown << " more";
  return text.str();
}

std::string or_none(Version version) { return version == kNone ? "none" : std::to_string(version); }

}  // namespace

void EngineConfig::check() const {
  schedule.check();
  if (schedule.accumulate || schedule.selective()) {
    throw std::invalid_argument(schedule.accumulate ? "accumulate = True: must be False, the engine averages models only"
                                                    : "initiators = " + std::to_string(schedule.initiators) +
                                                          ": must be 0, in the engine everybody may activate");
  }
  if (count < 1) throw std::invalid_argument("count = 0: a model has at least 1 element");
  if (!(timeout_s > 0 && timeout_s <= kLongestTimeout)) {
    throw std::invalid_argument("timeout_s = " + std::to_string(timeout_s) + ": must be above 0 and at most 1e7");
  }
}

Engine::Engine(const EngineConfig& config, std::shared_ptr<Transport> transport, const void* initial)
    : config_((config.check(), config)),
      transport_(std::move(transport)),
      rank_(transport_->rank()),
      buffers_(std::make_shared<Buffers>(config.count * item_size(config.dtype))),
      machine_(rank_, config.schedule, config.merge_once),
      last_sign_(Clock::now()) {
  if (transport_->world_size() != config.schedule.world_size) {
    throw std::invalid_argument("world_size = " + std::to_string(config.schedule.world_size) + ": the transport has " +
                                std::to_string(transport_->world_size()) + " ranks");
  }
  std::memcpy(buffers_->at(machine_.published()), initial, config.count * item_size(config.dtype));
  thread_ = std::thread(&Engine::run, this);
}

Engine::~Engine() {
  if (thread_.joinable()) abort("the engine was dropped without being closed");
}

Outcome Engine::arrive(Version version, const void* own, const Tick& tick) {
  const std::size_t bytes = config_.count * item_size(config_.dtype);
  int live = 0;
  {
    std::lock_guard lock(mutex_);
    require_running();
    live = machine_.live();
  }
  std::memcpy(buffers_->at(live), own, bytes);
  IterationRecord record;
  record.iteration = version;
  if (config_.digests) record.published_digest = record.model_digest = digest(buffers_->at(live), bytes);
  std::optional<Complete> complete;
  {
    std::unique_lock lock(mutex_);
    record.arrival_ns = now_ns();  // under the lock, so that its order with starts is the order that decided `fresh`
    apply(machine_.arrive(version), true);
    iteration_ = record;
    lock.unlock();
    transport_->wake();
    lock.lock();
    wait_for(lock, tick, false, [&] { return complete_.has_value(); });
    complete = std::exchange(complete_, std::nullopt);
    iteration_.fresh = complete->fresh;
    iteration_.merged_version = complete->merged_version;
    if (complete->merged_version == kNone) finish_iteration();
  }
  if (complete->merged_version == kNone) return {complete->fresh, kNone, 0};
  merging_ = complete->buffer;
  const auto group = config_.schedule.group(rank_, complete->merged_version);
  return {complete->fresh, complete->merged_version, static_cast<int>(group.size())};
}

void Engine::merge(void* own, int own_weight, int divisor) {
  if (merging_ < 0) throw ProtocolError("rank " + std::to_string(rank_) + ": merge without a result to merge");
  wagma::merge(config_.dtype, own, buffers_->at(merging_), own_weight, divisor, config_.count);
  finish_merge(own);
}

void Engine::copy_result(void* own) {
  if (merging_ < 0) throw ProtocolError("rank " + std::to_string(rank_) + ": copy_result without a result to copy");
  std::memcpy(own, buffers_->at(merging_), config_.count * item_size(config_.dtype));
  finish_merge(own);
}

void Engine::finish_merge(const void* own) {
  const std::size_t bytes = config_.count * item_size(config_.dtype);
  if (config_.digests) {
    iteration_.merged_digest = digest(buffers_->at(merging_), bytes);
    iteration_.model_digest = digest(own, bytes);
  }
  merging_ = -1;
  std::lock_guard lock(mutex_);
  apply(machine_.merge_done());
  finish_iteration();
}

void Engine::close(const Tick& tick) {
  {
    std::unique_lock lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    if (!closing_) {  // else a close that ran into its limit is tried again
      apply(machine_.close());
      closing_ = true;
    }
    last_sign_ = Clock::now();
    lock.unlock();
    transport_->wake();
    lock.lock();
    wait_for(lock, tick, true, [&] { return finished_; });
  }
  if (thread_.joinable()) thread_.join();
}

void Engine::abort(const std::string& message) {
  {
    std::lock_guard lock(mutex_);
    if (!abort_) abort_ = message;
  }
  transport_->wake();
  if (thread_.joinable()) thread_.join();
}

Records Engine::take_records() {
  std::lock_guard lock(mutex_);
  return std::exchange(records_, {});
}

void Engine::apply(const Outputs& outputs, bool by_arrival) {
  note_activated(by_arrival);
  for (const Output& output : outputs) {
    if (const auto* complete = std::get_if<Complete>(&output)) {
      complete_ = *complete;
      released_.notify_all();
      continue;
    }
    if (const auto* start = std::get_if<Start>(&output)) starting_ = record_of(*start);
    outbox_.push_back(output);
  }
}

void Engine::note_activated(bool by_arrival) {
  const Version known = activated_.empty() ? kNone : activated_.back().version;
  if (machine_.activated() > known) activated_.push_back({machine_.activated(), now_ns(), by_arrival});
}

ExecutionRecord Engine::record_of(const Start& start) {
  // The last entry stays, whatever its version: note_activated compares with it.
  while (activated_.size() > 1 && activated_.front().version < start.version) activated_.pop_front();
  const Activated& by = activated_.front();
  ExecutionRecord record;
  record.version = start.version;
  record.members = config_.schedule.group(rank_, start.version);
  record.activator = by.by_arrival && by.version == start.version;
  record.activated_ns = by.at_ns;
  record.started_ns = now_ns();
  record.own_stamp = start.stamp;
  return record;
}

void Engine::finish_iteration() {
  iteration_.return_ns = now_ns();
  iteration_.sequence = sequence_++;
  if (config_.record) records_.iterations.push_back(iteration_);
}

void Engine::require_running() const {
  if (failure_) std::rethrow_exception(failure_);
  if (closing_) throw ProtocolError("rank " + std::to_string(rank_) + ": the engine is closed");
}

template <class Ready>
void Engine::wait_for(std::unique_lock<std::mutex>& lock, const Tick& tick, bool extend, Ready ready) {
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(config_.timeout_s));
  const auto begun = Clock::now();
  while (!ready()) {
    if (failure_) std::rethrow_exception(failure_);
    const auto deadline = (extend ? std::max(begun, last_sign_) : begun) + limit;
    const auto now = Clock::now();
    if (now >= deadline) {
      const std::string why = timeout_message(lock);
      if (ready()) return;  // it came while the message was being made
      throw CollectiveTimeout(why);
    }
    released_.wait_until(lock, std::min<Clock::time_point>(deadline, now + kTick));
    if (tick && !ready()) {
      lock.unlock();  // it runs foreign code
      tick();
      lock.lock();
    }
  }
}

std::string Engine::timeout_message(std::unique_lock<std::mutex>& lock) {
  missing_asked_ = true;
  missing_.reset();
  lock.unlock();
  transport_->wake();
  lock.lock();
  released_.wait_for(lock, kAnswer, [&] { return missing_ || failure_; });
  if (failure_) std::rethrow_exception(failure_);
  std::ostringstream text;
  text << "rank " << rank_ << ": ";
  const Version version = machine_.waiting() != kNone ? machine_.waiting() : machine_.executing();
  if (machine_.closed()) {
    text << "closed after version " << or_none(machine_.arrived()) << ", and heard nothing for " << config_.timeout_s
         << " s while not all ranks have closed";
  } else {
    text << "version " << version << (config_.schedule.is_sync(version) ? " (sync of " : " (group of ")
         << listed(config_.schedule.group(rank_, version)) << ") is not complete after " << config_.timeout_s << " s";
  }
  if (!missing_) {
    text << "; the progress thread did not answer";
  } else if (!missing_->empty()) {
    text << "; version " << machine_.executing() << " lacks the part of " << listed(*missing_);
  }
  text << " (next version " << machine_.next_version() << ", executing " << or_none(machine_.executing()) << ", activated "
       << or_none(machine_.activated()) << ")";
  return text.str();
}

}  // namespace wagma
