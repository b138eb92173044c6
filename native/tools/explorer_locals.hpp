// The states of single ranks, interned, and what each event makes of each of them, computed once.
//
// A global state is one number per rank and one bit for each message in flight. One bit is enough because each (kind,
// receiver, dimension, version) is sent at most once: the neighbour over a dimension is a bijection, and a sender
// forwards a version over a dimension once; a second one would be reported as a violation.
//
// Numbers of states mean the same at every rank (nothing in a state names its rank), so that a state of one rank can be
// given to another: explorer_symmetry.hpp.
//
// Two reductions, both bisimulations, and switched off by `exact`: ranks that differ only in the names of their buffers
// and in what nothing reads any more are one (Rank::signature), and messages that the receiver would ignore are not kept.
// A Solo from a version that nobody arrives at counts among these: it would be noted and told on, and nobody could do more or less.
// So edges that deliver one are found by exact searches only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "harness.hpp"

namespace wagma::tools {

inline constexpr int kMaxRanks = 8;
using LocalId = std::uint16_t;
using Messages = std::uint64_t;                            // a set of them: bit receiver * messages() + message
using Permutation = std::array<std::uint8_t, kMaxRanks>;  // rank -> the rank in whose place it is put

// What a reduction takes for granted of the machine, checked on each edge, does not hold: search without the reduction.
struct ReductionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct GlobalState {
  std::array<LocalId, kMaxRanks> local{};
  Messages in_flight = 0;
  bool operator==(const GlobalState&) const = default;
};

// Of one rank in one state: what the search looks at all the time.
struct Facts {
  Messages idle = 0;      // messages to it that it would ignore, now and later
  Messages may_send = 0;  // messages that it may still send
  Version started = kNone;
  std::int32_t application = 0;  // its next event, as a number
  bool known = false, ready = false, closed = false, executing = false, read = false, finished = false;
};

inline std::int32_t number_of(const Event& event) {
  return static_cast<std::int32_t>(event.kind + Event::kKinds * (event.version - kNone));
}
inline Event::Kind kind_of(std::int32_t number) { return static_cast<Event::Kind>(number % Event::kKinds); }

struct Transition {
  enum Kind : std::uint8_t { unknown, fine, broken };
  Kind kind = unknown;
  LocalId next = 0;
  Messages sent = 0;
};

class Locals {
 public:
  // Events of a rank as numbers; messages follow: activations, then Solo, by dimension and version.
  enum : int { kApplication, kExecDone, kReadDone, kFinish, kMessage };

  // ordered: check what the reduction of orders relies on. symmetries: those but for the identity; each edge is compared
  // with its images.
  Locals(const Case& config, bool exact, bool ordered, std::vector<Permutation> symmetries);

  int events() const { return events_; }
  int messages() const { return messages_; }  // possible ones to each receiver
  int versions() const { return versions_; }
  Messages all() const { return messages_ == 0 ? 0 : ~Messages{0} >> (64 - messages_); }  // those to one receiver, as numbers
  Messages bit_of(int receiver, int message) const { return Messages{1} << (receiver * messages_ + message); }
  // Messages after each of which this one is idle: on the same way, a later activation, a Solo from an earlier version.
  Messages dominators(int bit) const { return dominators_[static_cast<std::size_t>(bit)]; }

  LocalId initial(int rank);
  const Facts& facts(int rank, LocalId id) const { return facts_[at(rank)][id]; }
  const Rank& state(int rank, LocalId id) const { return *states_[at(rank)][id]; }
  Event event_of(int rank, LocalId id, int number) const;
  Event delivery_of(int message) const;
  const Transition& react(int rank, LocalId id, int number) {
    const Transition& known = transition(rank, id, number);
    return known.kind == Transition::unknown ? compute(rank, id, number) : known;
  }
  const Transition& transition(int rank, LocalId id, int number) const {
    return transitions_[at(rank)][static_cast<std::size_t>(id) * static_cast<std::size_t>(events_) + static_cast<std::size_t>(number)];
  }
  // Do a broken transition again, for what it throws.
  [[noreturn]] void explain(int rank, LocalId id, int number) const;
  std::size_t size() const { return ids_.size(); }
  const std::vector<const std::string*>& edges() const { return edges_; }

 private:
  static std::size_t at(int rank) { return static_cast<std::size_t>(rank); }
  int activation_of(int dimension, Version version) const { return dimension * versions_ + static_cast<int>(version); }
  int solo_of(int dimension, std::size_t told) const {  // told: the place of its version among those that a Solo can be of
    return dimensions_ * versions_ + dimension * static_cast<int>(told_.size()) + static_cast<int>(told);
  }
  LocalId intern(int rank, const Rank& state);
  void place(int rank, LocalId id, const Rank& state);
  const Transition& compute(int rank, LocalId id, int number);
  Transition compute_one(int rank, LocalId id, int number);
  void check_idle(int rank, const Rank& state, Messages idle) const;
  void check_reducible(int rank, LocalId id, int number, const Transition& transition) const;
  Messages sent_by(const Outputs& outputs) const;
  Messages idle_messages(int rank, const Rank& state) const;
  Messages still_sent_by(int rank, const Rank& state) const;
  void find_dominators();
  void record_edge(int rank, const std::vector<Version>& before, const Event& event, const Outputs& outputs,
                   const std::vector<Version>& after);

  Case case_;
  bool exact_, ordered_;
  std::vector<Permutation> symmetries_;
  int ranks_, dimensions_, versions_;
  std::vector<Version> told_;  // versions that a Solo can be of, rising: those at which somebody does not arrive any more
  int messages_, events_;
  std::unordered_map<std::string, LocalId> ids_;
  std::vector<std::vector<Facts>> facts_;                       // [rank][id]
  std::vector<std::vector<std::unique_ptr<const Rank>>> states_;  // [rank][id]
  std::vector<std::vector<Transition>> transitions_;            // [rank][id * events + number]
  std::array<Messages, 64> dominators_{};
  std::unordered_set<std::string> seen_edges_;
  std::vector<const std::string*> edges_;
};

}  // namespace wagma::tools
