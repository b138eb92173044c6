// Engine::drive_until, for the application's side of the engine.
#pragma once

#include <algorithm>
#include <utility>

#include "wagma/engine.hpp"

namespace wagma {

constexpr auto kTick = std::chrono::milliseconds(50);  // how often a wait looks for Ctrl-C

// The application's turn at driving. Lock order: before mutex_.
class Engine::Turn {
 public:
  explicit Turn(Engine& engine) : engine_(engine), drive_(engine.drive_, std::defer_lock) {
    engine_.application_wants_ = true;
    drive_.lock();
    engine_.application_wants_ = false;
    engine_.transport_->awake();
  }
  ~Turn() { engine_.hand_over(drive_); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Engine& engine_;
  std::unique_lock<Mutex> drive_;
};

// Until `ready`, which is asked under mutex_. Throws what has ended the engine, CollectiveTimeout, and what `tick` throws; given_up is called
// first, still in the application's turn: nothing is carried out between the last look at `ready` and that call.
template <class Ready, class GivenUp>
void Engine::drive_until(const Tick& tick, bool extend, Ready ready, GivenUp given_up) {
  {
    std::lock_guard lock(mutex_);
    if (ready()) return;  // as a late rank often is
    if (failure_) std::rethrow_exception(failure_);
  }
  const Turn turn(*this);
  try {
    drive(tick, extend, ready);
  } catch (...) {
    given_up();
    throw;
  }
}

template <class Ready>
void Engine::drive_until(const Tick& tick, bool extend, Ready ready) {
  drive_until(tick, extend, ready, [] {});
}

// The same in the application's turn.
template <class Ready>
void Engine::drive(const Tick& tick, bool extend, Ready ready) {
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(config_.timeout_s));
  const auto begun = Clock::now();
  auto idle_since = begun, next_tick = begun + kTick;
  for (;;) {
    const bool busy = guarded_serve();
    const auto now = Clock::now();
    auto deadline = begun;
    {
      std::lock_guard lock(mutex_);
      if (ready()) return;
      if (failure_) std::rethrow_exception(failure_);
      if (extend) deadline = std::max(begun, last_sign_);
    }
    deadline += limit;
    if (now >= deadline) throw CollectiveTimeout(timeout_message());
    if (now >= next_tick) {  // also without a tick: a deadline in the past would make every sleep return at once
      next_tick = now + kTick;
      watch();
      if (tick) tick();
    }
    if (busy) {
      idle_since = now;
    } else if (now - idle_since < transport_->patience()) {
      transport_->pause(now - idle_since);
    } else {
      const std::uint32_t since = transport_->announce(Sleeper::application);
      if (!guarded_serve() && !ended()) transport_->sleep(Sleeper::application, since, std::min(deadline, next_tick));
      transport_->awake();
    }
  }
}

}  // namespace wagma
