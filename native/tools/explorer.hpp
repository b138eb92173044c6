// Every reachable global state of a small case, by breadth-first search, so that a counterexample is a shortest one.
//
// What is enumerated: each rank's application (arrive, merge, retract, close, at any time), each message in flight
// (activations and, with initiators, Solo; delivered in any order: the network is an unordered set), exec_done and
// read_done (once all members of the group have started the version, in any order: more permissive than any transport),
// finish (once all ranks have closed).
//
// How it stays small: a rank's states are interned, so that a global state is one number per rank and one bit for each
// message in flight; a rank's reaction to an event is computed once and looked up afterwards. Both are exact. One bit
// is enough because each (kind, receiver, dimension, version) is sent at most once: the neighbour over a dimension is a
// bijection, and a sender forwards a version over a dimension once; a second one would be reported as a violation.
//
// Two reductions, both bisimulations, argued where they are made, and switched off by `exact`: ranks that differ only in
// the names of their buffers and in what nothing reads any more are one (Rank::signature), and messages that the
// receiver would ignore are not kept (idle_messages). No order of events is left out: there is no partial-order reduction.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "harness.hpp"

namespace wagma::tools {

inline constexpr int kMaxRanks = 8;

struct GlobalState {
  std::array<std::uint16_t, kMaxRanks> local{};
  std::uint64_t in_flight = 0;
  bool operator==(const GlobalState&) const = default;
};

// Appends pages, never moves them: growing by doubling would need three times the memory at its peak.
template <class T>
class Pages {
 public:
  T& operator[](std::size_t i) { return pages_[i >> kBits][i & kMask]; }
  std::size_t size() const { return size_; }
  void push_back(const T& value) {
    if ((size_ & kMask) == 0) pages_.push_back(std::make_unique<T[]>(kMask + 1));
    (*this)[size_++] = value;
  }

 private:
  static constexpr int kBits = 16;
  static constexpr std::size_t kMask = (1u << kBits) - 1;
  std::vector<std::unique_ptr<T[]>> pages_;
  std::size_t size_ = 0;
};

class Explorer {
 public:
  struct Result {
    std::uint64_t states = 0, transitions = 0;
    bool complete = true;   // false: max_states reached
    std::string violation;  // empty: none
    std::vector<std::string> path;
  };

  Explorer(const Case& config, std::uint64_t max_states, bool exact);
  Result run();

  // Distinct edges of the decision machines, one line each: "rank;state;event version dimension;outputs;next state".
  // Outputs are "F version dimension rank", "S version buffer target stamp oldest", "C version fresh merged_version
  // buffer", "R buffer stamp oldest" or "O version dimension rank" (Solo), separated by commas.
  const std::vector<std::string>& machine_edges() const { return machine_edges_; }

 private:
  struct Node {
    GlobalState state;
    std::uint32_t parent;
    std::uint8_t rank, event;
  };
  struct Local {
    Rank rank;
    Version started;
    bool closed, ready;
    std::uint64_t idle;  // messages that it would ignore
  };
  struct Transition {
    bool known = false;
    std::uint16_t next = 0;
    std::uint64_t sent = 0;
  };
  // Events of a rank as numbers; messages follow: activations, then Solo, by dimension and version.
  enum : int { kApplication, kExecDone, kReadDone, kFinish, kMessage };

  Event event_of(int rank, int local, int number) const;
  // The number of a message among those to one receiver, and its bit in GlobalState::in_flight.
  int message_of(bool solo, int dimension, Version version) const {
    return (solo ? dimensions_ * versions_ + dimension * (versions_ + 1) : dimension * versions_) + static_cast<int>(version);
  }
  std::uint64_t bit_of(int receiver, int message) const { return std::uint64_t{1} << (receiver * messages_ + message); }
  std::uint64_t idle_messages(int rank, const Rank& state) const;
  std::uint16_t intern(int rank, const Rank& state);
  const Transition& react(int rank, int local, int number);
  void record_edge(int rank, const std::vector<Version>& before, const Event& event, const Outputs& outputs,
                   const std::vector<Version>& after);
  bool started_by_all(const GlobalState& state, int rank) const;
  bool expand(std::uint32_t index);
  bool follow(std::uint32_t index, int rank, int number, std::uint64_t delivered);
  void check_quiet(const GlobalState& state, bool anything_enabled) const;
  bool add(const GlobalState& state, std::uint32_t parent, int rank, int event);
  void grow();
  std::vector<std::string> path_to(std::uint32_t index);
  Local& local(const GlobalState& state, int rank) {
    return locals_[static_cast<std::size_t>(rank)][state.local[static_cast<std::size_t>(rank)]];
  }
  const Local& local(const GlobalState& state, int rank) const {
    return locals_[static_cast<std::size_t>(rank)][state.local[static_cast<std::size_t>(rank)]];
  }

  Case case_;
  bool exact_;
  std::uint64_t max_states_;
  int ranks_, dimensions_, versions_;
  int messages_;  // possible ones to each receiver
  int events_;
  std::vector<std::vector<Group>> groups_;  // [rank][version]
  std::vector<std::deque<Local>> locals_;
  std::vector<std::vector<Transition>> reactions_;  // [rank][local * events_ + number]
  std::vector<std::unordered_map<std::string, std::uint16_t>> local_ids_;
  std::unordered_set<std::string> seen_edges_;
  std::vector<std::string> machine_edges_;
  Pages<Node> nodes_;
  std::vector<std::uint32_t> table_;  // open addressing: index of a node + 1, or 0
  Result result_;
};

}  // namespace wagma::tools
