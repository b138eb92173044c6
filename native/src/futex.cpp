#include "futex.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace wagma {

namespace {

// Not the private kind of futex: the ranks may be processes. std::atomic<uint32_t> has the word's representation.
static_assert(sizeof(Atomic<std::uint32_t>) == sizeof(std::uint32_t) && Atomic<std::uint32_t>::is_always_lock_free);
std::uint32_t* plain(Atomic<std::uint32_t>& word) { return reinterpret_cast<std::uint32_t*>(&word); }

}  // namespace

void futex_wait(Atomic<std::uint32_t>& word, std::uint32_t expected, Clock::time_point deadline, std::uint32_t bits) {
  // The bit-set form takes an absolute time of CLOCK_MONOTONIC, which is what steady_clock is on Linux.
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.time_since_epoch()).count();
  if (nanoseconds <= 0) return;
  const timespec limit{static_cast<time_t>(nanoseconds / 1000000000), static_cast<long>(nanoseconds % 1000000000)};
  ::syscall(SYS_futex, plain(word), FUTEX_WAIT_BITSET, expected, &limit, nullptr, bits);
}

void futex_wake(Atomic<std::uint32_t>& word, std::uint32_t bits) {
  ::syscall(SYS_futex, plain(word), FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr, bits);
}

}  // namespace wagma
