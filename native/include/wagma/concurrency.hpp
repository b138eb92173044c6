// Atomics, locks, threads and the clock under names of our own, so that the model check (native/model) can run the very code with
// its own: there every access is a step, and a scheduler tries the orders of steps. Everywhere else they are the library's.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#ifdef WAGMA_MODEL_CHECK
#include "checked.hpp"
#else
namespace wagma {

template <class T>
using Atomic = std::atomic<T>;
using Mutex = std::mutex;
using Thread = std::thread;
using Clock = std::chrono::steady_clock;

}  // namespace wagma
#endif
