// What wagma/concurrency.hpp gives instead of the library's atomics, locks, threads and clock where the model check runs the kernel's
// own code: one thread, a task for each that the kernel would have, and a scheduler that decides before each access who goes on.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <type_traits>

namespace wagma {

namespace check {

// Words and locks are numbered in the order in which a run makes them, which is the same in every run.
std::uint32_t new_word();
// The running task is about to access the word: the scheduler may let others go first. Words that only one task accesses need no stop.
void step(std::uint32_t word, bool writes);
// What the access returned: with the code it is all that the task's further way depends on.
void observe(std::uint64_t value);
void changed(std::uint32_t word, std::uint64_t before, std::uint64_t after);
std::uint64_t history();

void lock(std::uint32_t word, bool& locked, std::uint64_t& protects);
bool try_lock(std::uint32_t word, bool& locked, std::uint64_t& protects);
void unlock(std::uint32_t word, bool& locked, std::uint64_t& protects);
int spawn(std::function<void()> body);
void join(int task);
std::int64_t own_time_ns();

}  // namespace check

template <class T>
class Atomic {
 public:
  static constexpr bool is_always_lock_free = true;
  Atomic() : Atomic(T{}) {}
  Atomic(T value) : value_(value), word_(check::new_word()) { check::changed(word_, 0, bits(value)); }
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  // Every order counts as sequentially consistent here; the weaker ones are reasoned about where they stand.
  T load(std::memory_order = std::memory_order_seq_cst) const {
    check::step(word_, false);
    check::observe(bits(value_));
    return value_;
  }
  void store(T value, std::memory_order = std::memory_order_seq_cst) {
    check::step(word_, true);
    set(value);
  }
  T operator=(T value) {
    store(value);
    return value;
  }
  operator T() const { return load(); }
  T exchange(T value, std::memory_order = std::memory_order_seq_cst) {
    return update([&](T) { return value; });
  }
  T fetch_add(T by, std::memory_order = std::memory_order_seq_cst) {
    return update([&](T old) { return static_cast<T>(old + by); });
  }
  T fetch_or(T by, std::memory_order = std::memory_order_seq_cst) {
    return update([&](T old) { return static_cast<T>(old | by); });
  }
  bool compare_exchange_strong(T& expected, T desired) {
    check::step(word_, true);
    check::observe(bits(value_));
    const bool equal = value_ == expected;
    if (equal) {
      set(desired);
    } else {
      expected = value_;
    }
    return equal;
  }
  // Never fails without a reason here: its loop would then only ask again.
  bool compare_exchange_weak(T& expected, T desired) { return compare_exchange_strong(expected, desired); }

  T peek() const { return value_; }  // without a step: for the checker's claims, and the futex
  std::uint32_t word() const { return word_; }

 private:
  static std::uint64_t bits(T value) { return static_cast<std::uint64_t>(value); }
  void set(T value) {
    check::changed(word_, bits(value_), bits(value));
    value_ = value;
  }
  template <class F>
  T update(F f) {
    check::step(word_, true);
    check::observe(bits(value_));
    const T old = value_;
    set(f(old));
    return old;
  }

  T value_;
  const std::uint32_t word_;
};

class Mutex {
 public:
  void lock() { check::lock(word_, locked_, protects_); }
  bool try_lock() { return check::try_lock(word_, locked_, protects_); }
  void unlock() { check::unlock(word_, locked_, protects_); }

 private:
  const std::uint32_t word_ = check::new_word();
  bool locked_ = false;
  std::uint64_t protects_ = 0;  // stands for what it protects: the history of whoever wrote that last
};

class Thread {
 public:
  Thread() = default;
  template <class F, class... A>
  explicit Thread(F f, A... arguments) : task_(check::spawn([=] { std::invoke(f, arguments...); })) {}
  bool joinable() const { return task_ >= 0; }
  void join() {
    check::join(task_);
    task_ = -1;
  }

 private:
  int task_ = -1;
};

// Each task's own, and each look at it takes time, so that whatever waits for time to pass sees it pass.
struct Clock {
  using duration = std::chrono::steady_clock::duration;
  using time_point = std::chrono::steady_clock::time_point;
  using rep = duration::rep;
  static time_point now() { return time_point(std::chrono::duration_cast<duration>(std::chrono::nanoseconds(check::own_time_ns()))); }
};

}  // namespace wagma
