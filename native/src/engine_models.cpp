// The application's models and the engine's buffers: publishing, merging, taking back.
//
// A device may take long: it first ends what the application has given it. That is waited for here, with neither the right to drive nor the
// mutex, so that the progress thread serves the peers meanwhile; and a rank arrives only when what it publishes is whole, so that no peer
// ever waits for its device. Which buffer and which model it works on follows from the machine's roles, as for arrays: live belongs to the
// application until it has arrived, merging until merge_done.
#include <sched.h>

#include <algorithm>
#include <sstream>
#include <thread>
#include <utility>

#include "clock.hpp"
#include "drive_until.hpp"

namespace wagma {

namespace {

// What takes microseconds is over after some looks, which leave the core to others. Then naps, as long as a quarter of what was waited so far.
constexpr auto kLooks = std::chrono::microseconds(50);
constexpr Clock::duration kLeastNap = std::chrono::microseconds(5), kLongestNap = std::chrono::microseconds(200);

}  // namespace

// -- waiting for a device -------------------------------------------------------------------------------------------------

// After a wait that was ended, or an error of the device, a model may be half copied or half merged.
void Engine::require_model(const void* own) const {
  if ((own == nullptr) != (config_.resident && models_->are_host_arrays())) {
    throw ProtocolError("rank " + std::to_string(rank_) + ": a model is handed in unless it is resident; of one on a device its stream is");
  }
  if (moving_) {
    throw ProtocolError("rank " + std::to_string(rank_) + ": iteration " + std::to_string(moving_->iteration) + ": the device had not " +
                        moving_->what + " when that was given up; the engine takes no more models");
  }
}

// `work` begins it. Throws CollectiveTimeout, what has ended the engine, what went wrong on the device, and what `tick` throws.
template <class Work>
void Engine::move(const Moving& moving, const Tick& tick, Work work) {
  const auto note = [&](std::optional<Moving> now) {
    std::lock_guard lock(mutex_);
    moving_ = now;
    since_ = Clock::now();
  };
  try {
    work();
    if (models_->done()) return;  // as arrays always are
    note(moving);
    nap_until_moved(moving, tick);
    note(std::nullopt);
  } catch (...) {
    if (!models_->are_host_arrays()) note(moving);
    rethrow_named("iteration " + std::to_string(moving.iteration));
  }
}

// In a handler. What a device says of itself becomes an error of this rank's; anything else goes through.
void Engine::rethrow_named(const std::string& about) const {
  const auto named = [&](const std::exception& error) {
    const std::string said = error.what();
    return said.starts_with("rank ") ? said : "rank " + std::to_string(rank_) + ": " + about + ": " + said;
  };
  try {
    throw;
  } catch (const OutOfDeviceMemory& error) {
    throw OutOfDeviceMemory(named(error));
  } catch (const DeviceError& error) {
    throw DeviceError(named(error));
  }
}

std::uint64_t Engine::digest_own(const void* own, Version iteration) {
  try {
    return models_->digest_own(own);
  } catch (...) {
    rethrow_named("iteration " + std::to_string(iteration));
  }
}

void Engine::nap_until_moved(const Moving& moving, const Tick& tick) {
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(config_.timeout_s));
  const auto begun = Clock::now();
  auto next_tick = begun + kTick;
  while (!models_->done()) {
    const auto now = Clock::now();
    {
      std::lock_guard lock(mutex_);
      if (failure_) std::rethrow_exception(failure_);
    }
    if (now - begun >= limit) {
      std::ostringstream text;
      text << "rank " << rank_ << ": iteration " << moving.iteration << ": the device has not " << moving.what << " after "
           << config_.timeout_s << " s";
      throw CollectiveTimeout(text.str());
    }
    if (now >= next_tick) {
      next_tick = now + kTick;
      if (tick) tick();
    }
    if (now - begun < kLooks) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(std::clamp((now - begun) / 4, kLeastNap, kLongestNap));
    }
  }
}

// -- publishing -----------------------------------------------------------------------------------------------------------

// Publishes and, where `model` is given (the caller drives), lets the transport copy out of it, if this arrival starts the version.
void Engine::publish(Version version, const void* own, int live, std::byte* model, const Tick& tick) {
  std::byte* buffer = transport_->buffer(live);
  const void* published = config_.resident ? models_->resident(own, buffer) : own;
  if (own && !model) {
    const char* what = config_.resident ? "published the model" : "copied the model";
    move({what, version}, tick, [&] { models_->publish(buffer, published, version); });
  }
  IterationRecord record;
  record.iteration = version;
  if (config_.digests) record.published_digest = record.model_digest = digest_own(models_->are_host_arrays() ? buffer : published, version);
  bool filled = true;
  auto late = Clock::duration::zero();
  {
    std::lock_guard lock(mutex_);
    late = lateness(version);
    model_ = model;
    stamps_[live] = version;
    record.arrival_ns = now_ns();  // under the lock, so that its order with starts is the order that decided `fresh`
    apply(machine_.arrive(version), true);
    iteration_ = record;
    since_ = last_sign_ = Clock::now();
    filled = std::exchange(model_, nullptr) == nullptr;
  }
  transport_->note_lateness(late);
  // Not started: what is published has to be whole before the turn is over.
  if (!filled) models_->publish(buffer, own, version);
}

// What this rank brings to the syncs after its end, where contributions accumulate.
void Engine::publish_last(int live, const void* model, const Tick& tick) {
  require_model(model);
  Version arrived = kNone;
  {
    std::lock_guard lock(mutex_);
    arrived = stamps_[live] = machine_.arrived();
  }
  move({"copied the last model", arrived}, tick, [&] { models_->publish(transport_->buffer(live), model, arrived); });
}

// -- merging --------------------------------------------------------------------------------------------------------------

const std::byte* Engine::begin_merge(const char* call, const void* own) {
  if (!merging_) throw ProtocolError("rank " + std::to_string(rank_) + ": " + call + " without a result");
  require_model(own);
  const std::byte* result = transport_->buffer(merging_->complete.buffer);
  if (config_.digests) {  // now: the result may become the model
    const std::size_t item = merging_->result.finished ? item_size(config_.dtype) : accumulator_size(config_.dtype);
    iteration_.merged_digest = models_->digest(result, config_.count * item);
  }
  return result;
}

void* Engine::destination(void* own) { return config_.resident ? models_->resident(own, static_cast<std::byte*>(live())) : own; }

// There is nothing to merge: a resident model goes on in another buffer, since peers may read the published one at any time.
void Engine::keep_model(const void* own, int published, const Tick& tick) {
  void* model = models_->resident(own, static_cast<std::byte*>(live()));
  move({"copied the model back", iteration_.iteration}, tick, [&] { models_->take(model, transport_->buffer(published)); });
}

void Engine::merge(void* own, int own_weight, int divisor, const Tick& tick) {
  if (merging_ && merging_->result.finished) {  // what was asked for is there already
    if (own_weight != 0 || divisor != merging_->result.divisor) {
      throw ProtocolError("rank " + std::to_string(rank_) + ": (sum + " + std::to_string(own_weight) + " * own) / " +
                          std::to_string(divisor) + " of a fresh contribution: with mean_when_fresh it is sum / " +
                          std::to_string(merging_->result.divisor));
    }
    copy_result(own, tick);
    return;
  }
  const std::byte* result = begin_merge("merge", own);
  void* model = destination(own);
  const void* published = config_.resident ? transport_->buffer(merging_->own) : own;
  move({"merged the result", iteration_.iteration}, tick, [&] { models_->merge(model, published, result, own_weight, divisor); });
  finish_merge(model);
}

void Engine::copy_result(void* own, const Tick& tick) {
  const std::byte* result = begin_merge("copy_result", own);
  void* model = destination(own);
  const bool in_place = merging_->result.in_model || (config_.resident && live() == result);
  move({"taken the result", iteration_.iteration}, tick, [&] {
    if (!merging_->result.finished) {
      models_->merge(model, model, result, 0, 1);
    } else if (!in_place) {  // else averaging is a change of role, or done
      models_->take(model, result);
    }
  });
  finish_merge(model);
}

void Engine::finish_merge(const void* model) {
  if (config_.digests) iteration_.model_digest = digest_own(model, iteration_.iteration);
  merging_.reset();
  std::lock_guard lock(mutex_);
  apply(machine_.merge_done());
  finish_iteration();
  since_ = Clock::now();
  merging_pending_ = false;
}

void* Engine::live() { return transport_->buffer(live_index()); }

int Engine::live_index() {
  std::lock_guard lock(mutex_);
  if (!config_.resident || machine_.live() == kNone) {
    throw ProtocolError("rank " + std::to_string(rank_) + ": no model of the application is in the buffers");
  }
  return machine_.live();
}

bool Engine::retract(void* own, const Tick& tick) {
  require_model(own);
  std::optional<Retracted> retracted;
  Version arrived = kNone;
  {
    std::lock_guard lock(mutex_);
    require_running();
    arrived = machine_.arrived();
    for (const Output& output : machine_.retract()) retracted = std::get<Retracted>(output);
  }
  if (!retracted) return false;
  move({"added what no version has taken", arrived}, tick, [&] { models_->add(own, transport_->buffer(retracted->buffer)); });
  std::lock_guard lock(mutex_);
  apply(machine_.merge_done());
  return true;
}

}  // namespace wagma
