// One run of a plan: ranks of harness.hpp under a scheduler, its log, and what it met.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "fuzzer_plan.hpp"
#include "harness.hpp"

namespace wagma::tools {

struct Counts {
  std::uint64_t events = 0, starts = 0, passive = 0, completions = 0, late = 0, quiet = 0, sums = 0, nulls = 0;
  std::uint64_t activations = 0, overtaken = 0;  // activations that came, over a dimension over which a later version's was there already
  std::uint64_t batched = 0;                     // events that a progress thread handled in the same look as the one before
  std::uint64_t far = 0;                         // arrivals eight versions late or more
  std::uint64_t behind = 0;                      // the most versions that an arrival was late
  std::uint64_t wide = 0;                        // runs whose longest delay was a million times the shortest, or more
};

// All that a run did, as numbers, event by event: when, which rank, what, and every field of every output; at the end every machine's
// state. Two runs did the same exactly if these are the same bytes.
class Log {
 public:
  void clear() { *this = {}; }
  void event(Ticks now, int rank, const Event& event);
  void output(const Output& output);
  void state(const std::vector<Version>& state);

  std::size_t size() const { return events_.size(); }
  std::string text(std::size_t index) const;  // of an event, in one line
  std::vector<std::int64_t> words(std::size_t index) const;  // of an event: time, rank, kind, version, dimension, outputs
  std::vector<std::int64_t> states() const { return {words_.begin() + static_cast<std::ptrdiff_t>(states_), words_.end()}; }
  std::uint64_t digest() const { return wagma::digest(words_.data(), words_.size() * sizeof words_[0]); }
  std::size_t first_difference(const Log& other) const;  // index of the first event that differs; size(): the states at the end
  bool operator==(const Log& other) const { return words_ == other.words_; }

 private:
  std::size_t end(std::size_t index) const;

  std::vector<std::int64_t> words_;
  std::vector<std::size_t> events_;  // where each begins
  std::size_t states_ = 0;           // where the states begin; 0: there are none
};

class Run {
 public:
  Run(const Plan& plan, Counts& counts, Log& log);

  // Throws what is wrong: Violation, or ProtocolError where a machine refuses an event. The log then ends with that event.
  void run();

  // Delays of all events that came about, those that have not happened included.
  std::unordered_map<Key, Delay> delays() const { return {drawn_.begin(), drawn_.end()}; }

 private:
  struct Pending {
    Ticks time;
    std::uint64_t order, tie, number;
    int rank;
    Event event;
    bool operator<(const Pending& other) const {
      return std::tie(other.time, other.order, other.tie, other.number) < std::tie(time, order, tie, number);
    }
  };

  Rank& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  void schedule(int rank, const Event& event, Version version, int dimension);
  void schedule(int rank, const Event& event) { schedule(rank, event, event.version, event.dimension); }
  void schedule_application(int rank, bool taken_back = false);
  void count_message(int rank, const Event& event);
  void step(int rank, const Event& event);
  void carry_out(int rank, const Output& output);
  void on_started(int rank, const Start& start);
  bool is_null(int member, Version version) const;
  void on_executed(int rank, Version version);
  void on_closed();
  void check_quiet();

  const Plan& plan_;
  Counts& counts_;
  Log& log_;
  std::vector<Rank> ranks_;
  Ticks now_ = 0;
  Ticks shortest_ = kNever, longest_ = 0;  // delays other than none
  std::uint64_t scheduled_ = 0;
  int closed_ = 0;
  std::int64_t system_pending_ = 0;
  std::priority_queue<Pending> queue_;
  std::vector<std::pair<Key, Delay>> drawn_;
  std::vector<std::vector<std::optional<Version>>> stamps_;  // [version][rank], of what has started
  std::vector<std::vector<char>> executed_;                  // [version][rank]
  std::vector<Version> newest_;                              // activation handled, [rank * dimensions + dimension]
  std::pair<int, Ticks> look_{-1, 0};                        // the last one at which a slow progress thread handled something
};

}  // namespace wagma::tools
