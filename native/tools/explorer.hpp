// Every reachable global state of a small case, by breadth-first search.
//
// What is enumerated: each rank's application (arrive, merge, retract, close, at any time), each message in flight
// (activations and, with initiators, Solo; delivered in any order: the network is an unordered set), exec_done and
// read_done (once all members of the group have started the version, in any order: more permissive than any transport),
// finish (once all ranks have closed).
//
// How it stays small: the states of a rank are interned (explorer_locals.hpp), of states that differ by a symmetry of the
// ranks one is searched (explorer_symmetry.hpp), and of orders that make no difference one (explorer_order.hpp). Without the
// last a counterexample is a shortest one; with it, a shortest one of those that are left.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "explorer_locals.hpp"
#include "explorer_nodes.hpp"
#include "explorer_order.hpp"
#include "explorer_symmetry.hpp"

namespace wagma::tools {

struct ExploreOptions {
  std::uint64_t max_states = 0;                      // 0: as many as there are
  std::uint64_t max_bytes = std::uint64_t{4} << 30;  // for the states; what else there is, is little
  bool exact = false;                                // no reduction at all, not even those of Rank::signature and idle messages
  bool symmetry = true, order = true;
  OrderRules rules;
  // Now and then, with the states found and those not looked at yet; what it throws ends the search.
  std::function<void(std::uint64_t states, std::uint64_t left)> progress;
  std::function<void(const Locals&, const GlobalState&)> on_quiet;  // for comparisons
};

struct ExploreResult {
  std::uint64_t states = 0, transitions = 0, quiet = 0, bytes = 0;
  std::size_t local_states = 0, symmetries = 1;
  bool order = false;       // whether orders were left out
  bool complete = true;     // false: a limit was reached
  std::string not_reduced;  // why the search was done again without reductions; empty: it was not
  std::string violation;    // empty: none
  std::vector<std::string> path;
  // Distinct edges of the decision machines, one line each: "rank;state;event version dimension;outputs;next state".
  // Outputs are "F version dimension rank", "S version buffer target stamp oldest", "C version fresh merged_version
  // buffer", "R buffer stamp oldest" or "O version dimension rank" (Solo), separated by commas.
  std::vector<std::string> edges;
};

// Throws UsageError for a case that is too large to be looked at.
ExploreResult explore(const Case& config, const ExploreOptions& options);

class Explorer {
 public:
  Explorer(const Case& config, const ExploreOptions& options);
  ExploreResult run();
  const Locals& locals() const { return locals_; }

 private:
  struct Step {
    int rank, number;
    Messages delivered;
  };
  struct Steps {
    std::vector<Step> all;
    bool system = false;
  };

  void enabled(const GlobalState& state, Steps& steps) const;
  bool started_by_all(const GlobalState& state, int rank) const;
  const Step* sufficient(const GlobalState& state, const Steps& steps);  // one that may be followed alone, or none
  GlobalState apply(const GlobalState& state, const Step& step);
  bool expand(std::uint32_t index);
  bool follow(std::uint32_t index, const GlobalState& state, const Step& step);
  void violated(const std::string& what, std::uint32_t index, const Step* last);
  void check_quiet(const GlobalState& state, bool anything_enabled) const;
  Permutation path_to(std::uint32_t index, const Step* last);  // fills in the path; how ranks are named in the last state
  Canonical least(const GlobalState& state) const { return canonical(state, symmetries_, ranks_, locals_.messages()); }
  const Facts& facts(const GlobalState& state, int rank) const {
    return locals_.facts(rank, state.local[static_cast<std::size_t>(rank)]);
  }
  const Rank& rank_of(const GlobalState& state, int rank) const {
    return locals_.state(rank, state.local[static_cast<std::size_t>(rank)]);
  }

  Case case_;
  ExploreOptions options_;
  int ranks_;
  std::vector<Permutation> symmetries_;
  Locals locals_;
  Order order_;
  Nodes nodes_;
  std::vector<std::vector<Group>> groups_;  // [rank][version]
  Steps steps_;
  ExploreResult result_;
};

}  // namespace wagma::tools
