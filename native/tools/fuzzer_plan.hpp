// A run of the fuzzer before it is run: the case, and how time goes by in it. A seed draws all of it, in whole numbers only, so that
// it means the same run on every machine and with every compiler.
//
// The delay of an event is a function of the seed and of what the event is (rank, kind, version, dimension), not of how many were
// drawn before it. So a plan with a rank, an iteration or a delay less is the same run otherwise: that is what shrinking stands on.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "case.hpp"
#include "wagma/digest.hpp"

namespace wagma::tools {

// Not <random>: its distributions differ between standard libraries.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(detail::mix64(seed)) {}
  std::uint64_t next() { return detail::mix64(state_ += 0x9E3779B97F4A7C15u); }
  int below(int n) { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
  int between(int from, int to) { return from + below(to - from + 1); }
  bool one_in(int n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

using Ticks = std::uint64_t;                    // of a clock that all ranks share, and none of them sees
inline constexpr Ticks kNever = Ticks{1} << 60;  // after everything else
using Key = std::uint64_t;

// What an event is. Each rank arrives, merges and takes back once in an iteration, and a message comes once over a dimension for a version
// (the explorer proves that), so that no two events of a run share a key. version: of the last arrival where the event has none.
inline Key key_of(int rank, Event::Kind kind, Version version, int dimension) {
  return static_cast<Key>(rank) << 56 | static_cast<Key>(kind) << 48 | static_cast<Key>(dimension + 1) << 40 |
         static_cast<Key>(version + 1);
}

inline bool is_application(Event::Kind kind) {
  return kind == Event::arrive || kind == Event::merge_done || kind == Event::close || kind == Event::retract;
}

struct Delay {
  Ticks ticks = 0;
  std::uint64_t order = 0, tie = 0;  // events of one instant happen in this order, then in that in which they came about
  bool operator==(const Delay&) const = default;
};

// A progress thread that looks seldom handles all that has come since its last look at once, in one of these orders.
struct Looks {
  enum Order { as_it_came, newest_first, any };
  Ticks period = 0;  // one look in each, at an arbitrary instant of it; 0: it handles everything as it comes
  Order order = as_it_came;
};

// The whole process stands still, application and progress thread.
struct Pause {
  int rank;
  Ticks from, length;
};

struct Plan {
  Case config;
  std::uint64_t seed = 0;                      // of the delays and looks
  std::array<int, Event::kKinds> scale{};      // of delays, by kind of event: powers of two
  std::vector<int> pace;                       // of each rank's application: powers of two
  std::vector<Looks> looks;                    // of each rank
  std::vector<Pause> pauses;
  bool instant = false;                        // no delays, but any order
  bool reads_end_early = false;                // reading ends at any time after the start, not when all members have the sum
  bool leaks = false;                          // planted: a run depends on those before it in the same process
  std::optional<std::unordered_map<Key, Delay>> delays;  // these, and none for other events; nothing: they are drawn

  // From now on until the event happens, slow progress threads and pauses included.
  Delay delay(int rank, Event::Kind kind, Key key, Ticks now) const;
  Delay drawn(int rank, Event::Kind kind, Key key) const;  // the same without them

 private:
  Ticks handled(int rank, Ticks came) const;  // when the progress thread of a rank handles what came then
  Ticks thawed(int rank, Ticks time) const;   // the same instant, or the end of the rank's pause at it
};

Plan draw_plan(std::uint64_t seed, Mutation mutation, bool two_activators);
std::string text_of(const Case& config);

}  // namespace wagma::tools
