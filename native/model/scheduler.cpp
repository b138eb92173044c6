#include "scheduler.hpp"

#include <cxxabi.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "futex.hpp"
#include "seen.hpp"

namespace wagma {
namespace check {
namespace {

constexpr std::size_t kStack = 128 * 1024;
constexpr int kTasks = 12;
constexpr std::uint64_t kTrail = 64, kEndless = 100000;  // steps
constexpr std::int64_t kLook = 12'000;  // ns, at the clock
constexpr std::int64_t kStart = 1'000'000'000'000;
// A sleep whose limit is so near is meant to be ended by it. Longer limits only bound what a lost wake-up costs, which is what this check
// looks for, so there they count for none.
constexpr std::int64_t kTimer = 5'000'000;
constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = (a ^ (b + kOdd + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBu;
  return x ^ (x >> 32);
}

enum class Waits { nothing, futex, lock, join };

struct Task {
  std::function<void()> body;
  Waits waits = Waits::nothing;
  std::uint32_t word = 0;  // of a futex or a lock, or the task that is joined
  std::uint32_t bits = 0;
  std::int64_t until = 0;  // of a futex, where its limit counts; else 0
  std::uint64_t history = 0;
  std::int64_t time = 0;  // since the run's start, by its own clock
  bool finished = false;
  std::array<std::uint64_t, 2> exceptions{};
  ucontext_t context;  // last, being the largest: the scheduler looks at the others at each step
};

struct Choice {
  std::array<std::int8_t, kTasks> tasks;
  int number = 0, at = 0;
};

struct Known {  // of a word, over all runs: accessed by which tasks, written by any
  std::uint32_t tasks = 0;
  bool written = false;
  bool tried = false;  // a lock that a task does not wait for, so that it sees how long another one holds it
  bool shared() const { return written && (tasks & (tasks - 1)) != 0; }
};

struct Event {
  int task;
  std::uint32_t word;
  char kind;
};

struct State {
  Limits limits;
  Found found;
  Seen seen;
  std::vector<Known> words;
  bool grown = false;  // a word has turned out to be shared: what was explored before did not stop there
  std::vector<Choice> path;

  // Of the present run.
  ucontext_t scheduler;
  std::byte* stacks = nullptr;
  std::array<Task, kTasks> tasks;
  int number = 0, running = -1;
  std::size_t depth = 0;
  std::uint32_t next_word = 0;
  std::uint64_t memory = 0;
  std::array<std::uint64_t, 256> ghosts;
  std::uint64_t ghosts_hash = 0;
  int deviations = 0;
  std::int64_t look = kLook;
  std::uint64_t steps = 0;
  std::array<Event, kTrail> trail;  // a ring, of the last steps
  bool over = false;
} state;

bool can_run(const Task& task) { return !task.finished && task.waits == Waits::nothing; }
bool is_timed(const Task& task) { return task.waits == Waits::futex && task.until != 0; }

// Its sleep may end at any time from here on: clocks of tasks are not compared.
void time_out(Task& task) {
  task.waits = Waits::nothing;
  task.time = std::max(task.time, task.until - kStart);
  task.history = mix(task.history, kOdd);
}

std::uint64_t present() {
  std::uint64_t hash = state.memory + state.ghosts_hash;
  for (int i = 0; i < state.number; ++i) {
    const Task& task = state.tasks[i];
    hash += mix(mix(i + 1, task.history), static_cast<std::uint64_t>(task.waits) * 2 + task.finished);
  }
  if (state.limits.deviations >= 0) hash = mix(hash, static_cast<std::uint64_t>(state.deviations) * 64 + state.running);
  return hash;
}

void leave_run() {
  state.over = true;
  *reinterpret_cast<std::array<std::uint64_t, 2>*>(abi::__cxa_get_globals()) = {};
  ::setcontext(&state.scheduler);
}

// Whoever goes on; the caller has noted what it waits for, if for anything.
void choose() {
  const bool arena_on = std::exchange(arena.on, false);
  const int before = state.running;
  Choice fresh;
  Choice* choice = nullptr;
  if (state.depth < state.path.size()) {
    choice = &state.path[state.depth];
  } else {
    // First what costs nothing: the same task, else the next one in turn.
    const auto add_in_turn = [&](int first, bool (*may_go_on)(const Task&)) {
      for (int i = 0, turn = first < state.number ? first : 0; i < state.number; ++i, turn = turn + 1 < state.number ? turn + 1 : 0) {
        if (may_go_on(state.tasks[turn])) fresh.tasks[fresh.number++] = static_cast<std::int8_t>(turn);
      }
    };
    add_in_turn(std::max(before, 0), can_run);
    add_in_turn(before + 1, is_timed);  // last, whose time may be over; of those that nap again and again each has its turn
    const bool may_deviate = state.limits.deviations < 0 || state.deviations < state.limits.deviations;
    if (!may_deviate) fresh.number = std::min(fresh.number, 1);
    if (fresh.number == 0) {
      for (int i = 0; i < state.number; ++i) {
        if (!state.tasks[i].finished) violated("deadlock or lost wake-up");
      }
      leave_run();
    }
    if (fresh.number > 1 && !state.seen.insert(present())) leave_run();
    state.path.push_back(fresh);
    choice = &state.path.back();
  }
  ++state.depth;
  const int next = choice->tasks[choice->at];
  state.deviations += choice->at > 0;
  state.running = next;
  if (is_timed(state.tasks[next])) time_out(state.tasks[next]);
  arena.on = arena_on;
  if (next == before) return;
  // The language keeps the exceptions that are being handled per thread; here it is per task.
  auto* exceptions = reinterpret_cast<std::array<std::uint64_t, 2>*>(abi::__cxa_get_globals());
  if (before >= 0) state.tasks[before].exceptions = *exceptions;
  *exceptions = state.tasks[next].exceptions;
  if (before < 0) {
    ::setcontext(&state.tasks[next].context);
  } else {
    ::swapcontext(&state.tasks[before].context, &state.tasks[next].context);
  }
}

void stop(std::uint32_t word, char kind) {
  choose();
  Task& task = state.tasks[state.running];
  task.history = mix(task.history, std::uint64_t{word} * 256 + static_cast<unsigned char>(kind));
  state.trail[state.steps++ % kTrail] = {state.running, word, kind};
  if (state.steps > kEndless) violated("a run without an end");
}

void wait(Waits what, std::uint32_t word, std::uint32_t bits, std::int64_t until = 0) {
  Task& task = state.tasks[state.running];
  task.waits = what;
  task.word = word;
  task.bits = bits;
  const std::int64_t left = until - kStart - task.time;
  task.until = left >= -kTimer && left <= kTimer ? until : 0;
  if (state.depth > kEndless) violated("a run without an end");  // as of whoever naps, and looks at what nobody changes
  choose();
}

void wake(Waits what, std::uint32_t word, std::uint32_t bits) {
  for (int i = 0; i < state.number; ++i) {
    Task& task = state.tasks[i];
    if (task.waits == what && task.word == word && (what != Waits::futex || (task.bits & bits))) task.waits = Waits::nothing;
  }
}

void entry() {
  arena.on = true;
  const int own = state.running;
  state.tasks[own].history = 1;  // a task that has begun is another state
  try {
    state.tasks[own].body();
  } catch (const std::exception& error) {
    violated(std::string("exception: ") + error.what());
  }
  state.tasks[own].finished = true;
  wake(Waits::join, static_cast<std::uint32_t>(own), 0);
  choose();
  std::abort();  // a finished task is never chosen
}

}  // namespace

std::uint32_t new_word() {
  if (state.next_word == state.words.size()) {
    const bool arena_on = std::exchange(arena.on, false);
    state.words.emplace_back();
    arena.on = arena_on;
  }
  return state.next_word++;
}

void step(std::uint32_t word, bool writes) {
  if (state.running < 0) return;
  Known& known = state.words[word];
  const bool before = known.shared();
  known.tasks |= 1u << state.running;
  known.written |= writes;
  if (known.shared() && !before) state.grown = true;
  if (known.shared()) stop(word, writes ? 'w' : 'r');
}

void observe(std::uint64_t value) {
  if (state.running < 0) return;
  Task& task = state.tasks[state.running];
  task.history = mix(task.history, value + 1);
}

void changed(std::uint32_t word, std::uint64_t before, std::uint64_t after) { state.memory += mix(word, after) - mix(word, before); }

std::uint64_t history() { return state.running < 0 ? 0 : state.tasks[state.running].history; }

void lock(std::uint32_t word, bool& locked, std::uint64_t& protects) {
  if (state.running < 0) return;
  stop(word, 'l');
  while (locked) wait(Waits::lock, word, 0);
  locked = true;
  changed(word, 0, 1);
  observe(protects);
}

bool try_lock(std::uint32_t word, bool& locked, std::uint64_t& protects) {
  if (state.running < 0) return true;
  if (!std::exchange(state.words[word].tried, true)) state.grown = true;
  stop(word, 't');
  observe(locked);
  if (locked) return false;
  locked = true;
  changed(word, 0, 1);
  observe(protects);
  return true;
}

void unlock(std::uint32_t word, bool& locked, std::uint64_t& protects) {
  if (state.running < 0) return;
  if (state.words[word].tried) stop(word, 'u');
  locked = false;
  changed(word, 1, 0);
  changed(~word, protects, history());
  protects = history();
  wake(Waits::lock, word, 0);
}

int spawn(std::function<void()> body) {
  if (state.number == kTasks) std::abort();
  Task& task = state.tasks[state.number];
  task.body = std::move(body);
  ::getcontext(&task.context);
  task.context.uc_stack.ss_sp = state.stacks + state.number * kStack;
  task.context.uc_stack.ss_size = kStack;
  task.context.uc_link = nullptr;
  ::makecontext(&task.context, entry, 0);
  return state.number++;
}

void join(int task) {
  if (state.running < 0) return;
  while (!state.tasks[task].finished) wait(Waits::join, static_cast<std::uint32_t>(task), 0);
}

std::int64_t own_time_ns() {
  return state.running < 0 ? kStart : kStart + (state.tasks[state.running].time += state.look);
}

void look_takes(std::int64_t ns) { state.look = ns; }

int task() { return state.running; }

void ghost(std::uint32_t slot, std::uint64_t value) {
  const auto hashed = [slot](std::uint64_t held) { return held ? mix(mix(~std::uint64_t{slot}, held), 3) : 0; };
  state.ghosts_hash += hashed(value) - hashed(state.ghosts[slot]);
  state.ghosts[slot] = value;
}

void violated(const std::string& claim) {
  arena.on = false;
  state.found.error = claim + "; the last steps (task word kind):";
  for (std::uint64_t i = state.steps - std::min(state.steps, kTrail); i < state.steps; ++i) {
    const Event& event = state.trail[i % kTrail];
    state.found.error.append(" ").append(std::to_string(event.task)).append(":").append(std::to_string(event.word));
    state.found.error.push_back(event.kind);
  }
  leave_run();
  std::abort();
}

namespace {

void run_once(const std::function<void()>& setup) {
  for (Task& task : state.tasks) task = Task{};
  state.number = 0;
  state.running = -1;
  state.depth = 0;
  state.next_word = 0;
  state.memory = 0;
  state.ghosts.fill(0);
  state.ghosts_hash = 0;
  state.deviations = 0;
  state.look = kLook;
  state.steps = 0;
  state.over = false;
  arena.used = 0;
  ::getcontext(&state.scheduler);
  if (!state.over) {
    arena.on = true;
    setup();
    choose();
  }
  arena.on = false;
}

bool next_path() {
  while (!state.path.empty()) {
    Choice& last = state.path.back();
    if (++last.at < last.number) return true;
    state.path.pop_back();
  }
  return false;
}

}  // namespace

Found explore(const Limits& limits, const std::function<void()>& setup) {
  if (!arena.base) {
    arena.base = mapped(Arena::kBytes);
    state.stacks = mapped(kStack * kTasks);
  }
  state.limits = limits;
  state.found = {};
  state.seen = {};
  state.words.clear();
  state.path.clear();
  Found& found = state.found;
  for (;;) {
    run_once(setup);
    ++found.runs;
    found.steps += state.steps;
    found.longest = std::max(found.longest, state.steps);
    if (!found.error.empty()) break;
    if (std::exchange(state.grown, false)) {  // from the start: with stops at this word, too
      state.seen = {};
      state.path.clear();
      continue;
    }
    if (limits.states && state.seen.size() >= limits.states) {
      found.complete = false;
      break;
    }
    if (!next_path()) break;
  }
  found.states = state.seen.size();
  return found;
}

}  // namespace check

void futex_wait(Atomic<std::uint32_t>& word, std::uint32_t expected, Clock::time_point deadline, std::uint32_t bits) {
  check::step(word.word(), false);
  check::observe(word.peek() == expected);
  const auto until = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.time_since_epoch()).count();
  if (word.peek() == expected) check::wait(check::Waits::futex, word.word(), bits, until);
}

void futex_wake(Atomic<std::uint32_t>& word, std::uint32_t bits) {
  check::step(word.word(), true);
  check::wake(check::Waits::futex, word.word(), bits);
}

}  // namespace wagma
