// The application's side of the engine: arriving and the end. What both threads do in turns is in engine_drive.cpp, what becomes of models in
// engine_models.cpp.
#include "wagma/engine.hpp"

#include <algorithm>
#include <mutex>
#include <utility>

#include "cache.hpp"
#include "clock.hpp"
#include "drive_until.hpp"
#include "keep.hpp"
#include "wagma/report.hpp"

namespace wagma {

namespace {

constexpr double kLongestTimeout = 1e7;  // seconds; more would overflow nothing but makes no sense
constexpr double kSettling = 1.0;        // seconds for a device to end what it was given

// What a group's reduction reads and writes.
std::size_t working_set(const EngineConfig& config) {
  return 2 * static_cast<std::size_t>(config.schedule.group_size) * config.count * item_size(config.dtype);
}

}  // namespace

void EngineConfig::check() const {
  schedule.check();
  if (count < 1) throw std::invalid_argument("count = 0: a model has at least 1 element");
  if (!(timeout_s > 0 && timeout_s <= kLongestTimeout)) {
    throw std::invalid_argument("timeout_s = " + std::to_string(timeout_s) + ": must be above 0 and at most 1e7");
  }
  if (!(watchdog_s >= 0 && watchdog_s <= kLongestTimeout)) {
    throw std::invalid_argument("watchdog_s = " + std::to_string(watchdog_s) + ": must be from 0 (never) to 1e7");
  }
}

int EngineConfig::buffers() const { return Machine(0, schedule, merge_once, resident).buffers(); }

Engine::Engine(const EngineConfig& config, std::shared_ptr<Transport> transport, const void* initial, std::shared_ptr<Models> models)
    : config_((config.check(), config)),
      transport_(std::move(transport)),
      models_(models ? std::move(models) : host_models(config.dtype, config.count, stores_for(working_set(config)))),
      rank_(transport_->rank()),
      machine_(rank_, config.schedule, config.merge_once, config.resident),
      last_sign_(Clock::now()),
      since_(last_sign_),
      reports_asked_(reports_asked()) {
  if (transport_->world_size() != config.schedule.world_size) {
    throw std::invalid_argument("world_size = " + std::to_string(config.schedule.world_size) + ": the transport has " +
                                std::to_string(transport_->world_size()) + " ranks");
  }
  if (transport_->buffers() < machine_.buffers() || transport_->buffer_bytes() < config.buffer_bytes()) {
    throw std::invalid_argument("the transport has " + std::to_string(transport_->buffers()) + " buffers of " +
                                std::to_string(transport_->buffer_bytes()) + " bytes: must be " +
                                std::to_string(machine_.buffers()) + " of " + std::to_string(config.buffer_bytes()));
  }
  if (config.resident && !models_->can_be_resident()) {
    throw std::invalid_argument("resident = True: must be False for a model on a device whose buffers are in host memory");
  }
  try {
    fill(machine_, initial);
  } catch (...) {
    keep_what_moves();
    throw;
  }
  thread_ = Thread(&Engine::run, this);
}

Engine::~Engine() {
  if (thread_.joinable()) abort("the engine was dropped without being closed");
  keep_what_moves();
}

// What a device has not ended it may still write, and the driver may fail, or wait for ever, where its memory is given back.
void Engine::keep_what_moves() {
  if (models_->settled(kSettling)) return;
  keep(transport_);
  keep(models_);
}

// The model that the machine's run begins with, wherever it has to be.
void Engine::fill(const Machine& machine, const void* initial) {
  for (const int buffer : {machine.published(), config_.resident ? machine.live() : static_cast<int>(kNone)}) {
    if (buffer == kNone) continue;
    models_->fill(transport_->buffer(buffer), initial, machine.schedule().begin - 1);
    std::lock_guard lock(mutex_);
    stamps_[buffer] = machine.schedule().begin - 1;
  }
}

void Engine::begin_at(Version begin, const void* initial) {
  Schedule schedule = config_.schedule;
  schedule.begin = begin;
  Machine machine(rank_, schedule, config_.merge_once, config_.resident);
  const auto check = [&] {  // under mutex_
    require_running();
    if (machine_.arrived() >= machine_.schedule().begin || machine_.activated() != kNone) {
      throw ProtocolError("rank " + std::to_string(rank_) + ": begin_at(" + std::to_string(begin) + ") is not allowed: version " +
                          std::to_string(std::max(machine_.arrived(), machine_.activated())) + " has begun");
    }
  };
  {
    std::lock_guard lock(mutex_);
    check();
  }
  // Not under the mutex, as no data is moved there: nothing is activated, and so nobody reads a buffer, before all ranks have been here.
  fill(machine, initial);
  std::lock_guard lock(mutex_);
  check();  // once more: a peer that has not waited for all may have activated in between, and a machine that has begun must not be replaced
  machine_ = std::move(machine);
}

// -- arriving -----------------------------------------------------------------------------------------------------------

// The buffer into which the application may write, kNone if it may not arrive now. There may be none for as long as peers still read what it
// published before, which is waited for.
int Engine::live_buffer(const Tick& tick) {
  int live = kNone;
  drive_until(tick, false, [&] {
    require_running();
    live = machine_.live();
    return !machine_.awaits_readers();
  });
  return live;
}

Outcome Engine::arrive(Version version, const void* own, const Tick& tick) { return arrive_with(version, own, nullptr, tick); }

Outcome Engine::arrive_with(Version version, const void* own, std::byte* model, const Tick& tick) {
  require_model(own);
  const int live = live_buffer(tick);
  if (live == kNone) {
    std::lock_guard lock(mutex_);
    machine_.arrive(version);  // says why not
    throw ProtocolError("rank " + std::to_string(rank_) + ": arrive without a buffer");
  }
  const auto ready = [&] { return complete_.has_value(); };
  std::optional<Turn> turn;
  if (model) {
    turn.emplace(*this);
    std::lock_guard lock(mutex_);
    if (version < machine_.next_version()) model = nullptr;  // late: it may be read at any time once it is published
  }
  if (!model) turn.reset();  // copying a large model takes long, and nobody would answer for this rank meanwhile
  publish(version, own, live, model, tick);
  if (model) {
    try {
      drive(tick, false, ready);
    } catch (...) {
      // The caller's array may be half averaged, and must not be touched any more. What was published is whole, at last now.
      // Where nothing was begun (a failure came first), the array was not touched and nothing is published.
      if (transport_->withdraw()) models_->take(model, transport_->buffer(live));
      throw;
    }
    turn.reset();
  } else {
    drive_until(tick, false, ready, [&] { stop_if_resident(version); });
  }
  std::unique_lock lock(mutex_);
  const Completed completed = *std::exchange(complete_, std::nullopt);
  const Complete& complete = completed.complete;
  iteration_.fresh = complete.fresh;
  iteration_.merged_version = complete.merged_version;
  since_ = Clock::now();
  merging_pending_ = complete.merged_version != kNone;
  if (complete.merged_version == kNone) {
    lock.unlock();
    if (config_.resident) keep_model(own, completed.own, tick);
    lock.lock();
    finish_iteration();
    return {complete.fresh, kNone, 0};
  }
  merging_ = completed;
  return {complete.fresh, complete.merged_version,
          static_cast<int>(config_.schedule.group(rank_, complete.merged_version).size())};
}

// A wait for `version` was given up. While a resident model is published its application looks at it where it lies, and goes on doing so. A
// sync that came to its end all the same would publish its own result, and free that buffer for others to write into. So this rank goes no
// further: serve() looks at abort_ before anything else. In a handler.
void Engine::stop_if_resident(Version version) {
  if (!config_.resident) return;
  std::string why = "its wait in iteration " + std::to_string(version) + " was interrupted, and its model is resident";
  try {
    throw;
  } catch (const CollectiveTimeout& error) {
    why = std::string("CollectiveTimeout: ") + error.what();
  } catch (...) {
    // What Python raises must not be asked for its text here, without the GIL.
  }
  {
    std::lock_guard lock(mutex_);
    if (abort_ || failure_) return;
    abort_ = why;
  }
  transport_->wake();
}

Outcome Engine::average(Version version, void* own, const Tick& tick) {
  const bool means = config_.mean_when_fresh || config_.schedule.is_sync(version);
  const std::size_t members = config_.schedule.is_sync(version) ? config_.schedule.world_size : config_.schedule.group_size;
  const bool direct = means && own && !config_.digests && models_->are_host_arrays() && transport_->takes_models(members);
  const Outcome outcome = arrive_with(version, own, direct ? static_cast<std::byte*>(own) : nullptr, tick);
  if (outcome.group_length == 0) return outcome;
  if (config_.schedule.is_sync(version)) {
    copy_result(own, tick);
  } else {
    merge(own, !outcome.fresh, outcome.group_length + !outcome.fresh, tick);
  }
  return outcome;
}

// -- the end ------------------------------------------------------------------------------------------------------------

void Engine::close(const Tick& tick, const void* model) {
  if (config_.schedule.accumulate && !closing_) {
    const int live = live_buffer(tick);
    const bool syncs = config_.schedule.sync_period != 0;
    if (syncs && !model) throw ProtocolError("rank " + std::to_string(rank_) + ": close without the model for the syncs that are left");
    if (syncs && live != kNone) publish_last(live, model, tick);
  }
  {
    std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    if (!closing_) {  // else a close that ran into its limit is tried again
      apply(machine_.close());
      closing_ = true;
    }
    since_ = last_sign_ = Clock::now();
  }
  transport_->note_lateness(Clock::duration::max());  // it will not come any more
  drive_until(tick, true, [&] { return finished_; });
  transport_->wake();
  join();
}

void Engine::abort(const std::string& message) {
  {
    std::lock_guard lock(mutex_);
    if (!abort_) abort_ = message;
  }
  transport_->wake();
  join();
}

void Engine::join() {
  std::lock_guard lock(join_);
  if (thread_.joinable()) thread_.join();
}

Records Engine::take_records() {
  std::lock_guard lock(mutex_);
  return std::exchange(records_, {});
}

// -- under the mutex ----------------------------------------------------------------------------------------------------

void Engine::apply(const Outputs& outputs, bool by_arrival) {
  note_activated(by_arrival);
  for (const Output& output : outputs) {
    if (const auto* complete = std::get_if<Complete>(&output)) {
      complete_ = Completed{*complete, result_, machine_.published()};
      continue;
    }
    if (const auto* start = std::get_if<Start>(&output)) starting_ = begun_of(*start);
    outbox_.push_back(output);
  }
}

void Engine::note_activated(bool by_arrival) {
  const Version known = activated_.empty() ? kNone : activated_.back().version;
  if (machine_.activated() > known) activated_.push_back({machine_.activated(), now_ns(), by_arrival});
}

Engine::Begun Engine::begun_of(const Start& start) {
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
  const bool fresh = machine_.waiting() == start.version;
  // With digests a group's members record the same sum, so that a checker can compare them; the bits are the same in the end.
  const bool sync = config_.schedule.is_sync(start.version);
  const bool mean = sync || (config_.mean_when_fresh && fresh && !config_.digests);
  const int divisor = mean ? static_cast<int>(record.members.size()) : 1;
  std::byte* model = fresh && mean && divisor != 1 ? std::exchange(model_, nullptr) : nullptr;
  const Version stamp = start.buffer == kNone ? kNone : stamps_[start.buffer];
  return {start, std::move(record), {divisor, sync || divisor != 1}, stamp, model, !fresh && machine_.arrived() < config_.schedule.previous(start.version)};
}

// How long after the end of the version, which has begun without the application, this one comes for it. Who comes while it goes on is not
// late: where ranks share cores that may have held him up.
Clock::duration Engine::lateness(Version version) const {
  if (version >= machine_.next_version() || machine_.executing() == version) return Clock::duration::zero();
  return machine_.next_version() > config_.schedule.next(version) ? Clock::duration::max() : Clock::now() - completed_at_;
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

}  // namespace wagma
