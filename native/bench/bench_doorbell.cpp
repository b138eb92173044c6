// From posting something for a thread to that thread having seen it, half of a round trip between two threads, in us: spinning peers, who
// look by themselves and are not rung for, and sleeping ones. Beside each what is to be had without a doorbell: one bare word
// that both spin on, and a byte through a pipe. System calls are those of both sides for one message.
//
//   bench_doorbell [--repeats N] [--messages N]
#include <unistd.h>

#include <atomic>

#include "timing.hpp"
#include "wagma/doorbell.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using namespace wagma;
using namespace wagma::timing;

void relax() {
#if defined(__x86_64__)
  static const bool has_core = std::thread::hardware_concurrency() > 1;  // else the other one cannot run meanwhile
  if (has_core) return _mm_pause();
#endif
  std::this_thread::yield();
}

// Where the two threads leave each other messages: what was posted, by number.
struct alignas(64) Side {
  Doorbell bell;
  alignas(64) std::atomic<long long> posted{0};
};

// post(to, number) and wait(at, number) of one kind of peers; both threads take turns `messages` times a repeat.
struct Kind {
  std::function<void(int, long long)> post;
  std::function<void(int, long long)> wait;
};

Spread time_round_trips(long long repeats, long long messages, const Kind& kind) {
  const long long all = (repeats + 1) * messages;
  std::jthread other([&] {
    for (long long number = 1; number <= all; ++number) {
      kind.wait(1, number);
      kind.post(0, number);
    }
  });
  long long number = 0;
  Spread round_trip = time_calls(repeats, messages, [&] {
    kind.post(1, ++number);
    kind.wait(0, number);
  });
  other.join();
  return {round_trip.lower / 2, round_trip.median / 2, round_trip.upper / 2};
}

Kind doorbell(Side* sides, std::atomic<long long>& calls, bool sleeping) {
  const auto post = [sides, &calls](int to, long long number) {
    sides[to].posted.store(number);
    if (sides[to].bell.ring()) calls.fetch_add(1, std::memory_order_relaxed);
  };
  const auto wait = [sides, &calls, sleeping](int at, long long number) {
    Side& side = sides[at];
    while (side.posted.load() < number) {
      if (!sleeping) {
        relax();
        continue;
      }
      const std::uint32_t since = side.bell.announce(Sleeper::application);
      if (side.posted.load() < number) {
        side.bell.sleep(Sleeper::application, since, Clock::now() + std::chrono::seconds(1));
        calls.fetch_add(1, std::memory_order_relaxed);
      }
      side.bell.awake();
    }
  };
  return {post, wait};
}

Kind bare_words(std::atomic<long long>* words) {
  return {[words](int to, long long number) { words[64 * to].store(number); },
          [words](int at, long long number) {
            while (words[64 * at].load() < number) relax();
          }};
}

Kind pipes(const int (*ends)[2]) {
  const auto check = [](ssize_t moved) {
    if (moved != 1) throw std::runtime_error("a pipe that does not work");
  };
  return {[=](int to, long long) { check(::write(ends[to][1], "x", 1)); },
          [=](int at, long long) {
            char byte;
            check(::read(ends[at][0], &byte, 1));
          }};
}

void bench(long long repeats, long long messages) {
  int ends[2][2];
  if (::pipe(ends[0]) != 0 || ::pipe(ends[1]) != 0) throw std::runtime_error("no pipes");
  std::vector<std::atomic<long long>> words(128);  // two of them, not on one cache line
  const Spread bare = time_round_trips(repeats, messages, bare_words(words.data()));
  const Spread piped = time_round_trips(repeats, messages, pipes(ends));
  for (const bool sleeping : {false, true}) {
    Side sides[2];
    std::atomic<long long> calls{0};
    const Spread time = time_round_trips(repeats, messages, doorbell(sides, calls, sleeping));
    const double per_message = static_cast<double>(calls) / static_cast<double>(2 * (repeats + 1) * messages);
    char more[40];
    std::snprintf(more, sizeof more, "system calls %.2f", per_message);
    const char* what = sleeping ? "ring to wake-up, sleeping peer" : "ring to sight, spinning peer";
    print_line(what, time, 1e-6, "us", sleeping ? "pipe" : "word", sleeping ? piped : bare, more);
  }
  for (const auto& pair : ends) {
    for (const int end : pair) ::close(end);
  }
}

}  // namespace

int main(int count, char** words) {
  long long repeats = 15, messages = 2000;
  return run_bench("bench_doorbell", [&] {
    read_options(count, words, {{"--repeats", &repeats}, {"--messages", &messages}});
    bench(repeats, messages);
  });
}
