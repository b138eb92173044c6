#include "wagma/doorbell.hpp"

#include "futex.hpp"

namespace wagma {

namespace {

constexpr std::uint32_t kBoth = static_cast<std::uint32_t>(Sleeper::application) | static_cast<std::uint32_t>(Sleeper::progress);

}  // namespace

std::uint32_t Doorbell::announce(Sleeper who) {
  const std::uint32_t since = rings_.load();
  attention_.store(static_cast<std::uint32_t>(who));
  return since;
}

// Whatever ends it, a wake, the deadline, a signal or that the word is no longer `since`, the caller looks again.
void Doorbell::sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) {
  futex_wait(rings_, since, deadline, static_cast<std::uint32_t>(who));
}

bool Doorbell::ring() {
  const std::uint32_t who = attention_.load();
  if (who == 0) return false;
  rings_.fetch_add(1);
  futex_wake(rings_, who);
  return true;
}

void Doorbell::ring_for(Sleeper who) {
  rings_.fetch_add(1);
  futex_wake(rings_, static_cast<std::uint32_t>(who));
}

void Doorbell::ring_all() {
  rings_.fetch_add(1);
  futex_wake(rings_, kBoth);
}

}  // namespace wagma
