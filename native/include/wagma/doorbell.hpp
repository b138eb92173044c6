// How a rank sleeps and is woken, across threads and processes: a futex, with a word beside it that says whether anybody sleeps, so
// that a rank that is awake costs its peers no system call.
//
// Two threads of a rank may sleep, the application's and the progress thread; one of them at a time is responsible for the rank. The
// protocol is Dekker's, so everything is sequentially consistent:
//
//   the one who sleeps                          the one who rings
//     since = announce(who)                       posts what is new
//     looks once more for what is new             attention == 0?  done: he is awake, or has yet to look
//     sleep(who, since, deadline)                 else rings
//
// With weaker orders both could miss each other (each reads before its own write is seen), and the sleeper would sleep through it.
#pragma once

#include <cstdint>

#include "wagma/concurrency.hpp"

namespace wagma {

enum class Sleeper : std::uint32_t { application = 1, progress = 2 };

class alignas(64) Doorbell {
 public:
  std::uint32_t count() const { return rings_.load(); }
  // From now on peers ring for `who`. Look once more before sleeping.
  std::uint32_t announce(Sleeper who);
  // Somebody of this rank is awake and looks by himself: peers need not ring.
  void awake() { attention_.store(0); }
  // Until the next ring since `count` was `since`, or `deadline`; may return early.
  void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline);
  // After posting something: wakes whoever sleeps. Returns whether a system call was needed.
  bool ring();
  bool is_asleep() const { return attention_.load() != 0; }
  // Wakes that thread, whatever has been announced.
  void ring_for(Sleeper who);
  // Wakes both threads, whatever they have announced.
  void ring_all();

 private:
  // Each ring counts up, so that one that comes between `announce` and the sleep itself makes the futex return at once.
  Atomic<std::uint32_t> rings_{0};
  Atomic<std::uint32_t> attention_{0};  // of the thread to wake; 0: of none
};

}  // namespace wagma
