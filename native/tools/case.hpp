// What the explorer and the fuzzer run: a schedule, each rank's number of arrivals, deliberate defects, and the events of a rank.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "wagma/protocol.hpp"

namespace wagma::tools {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool condition, const char* what) {
  if (!condition) throw Violation(what);
}

// Deliberate defects of the environment, or of the machine as the environment sees it, to show that the checks find them.
enum class Mutation {
  none,
  drop_second_activation,  // an activation of a version that is known already is not handled, so it is not forwarded
  no_forward,              // a rank that is activated by others tells nobody
  single_buffer,           // all roles share one buffer
  early_read_done,         // the end of the peers' reading is reported at the start
  no_fence,                // the machine believes that no version is a sync
  anybody_activates,       // the machine believes that every rank is a candidate
  no_solo,                 // a rank that closes tells nobody
  no_retract,              // the application arrives without taking its undelivered gradients back
  loses_gradients,         // the application forgets what it took back
  not_taken,               // a gradient stays published when a version has started with it
  keeps_model,             // the result of a sync is published, as if models were contributed to group versions
  no_last_model,           // a rank that closes hands no model in
  one_buffer_less,         // models: a rank has a buffer less than the machine asks for
  greedy_live,             // the next live buffer is reserved while the application waits or merges
  merging_is_free,         // a result that is being merged is given up when the next version starts
  live_is_published,       // the application writes the next model where it published the last one
  target_is_live,          // a sum is written into the buffer that the application writes
  always_in_place,         // resident: every result becomes the application's model where it is
};

inline const std::vector<std::pair<std::string, Mutation>>& mutations() {
  static const std::vector<std::pair<std::string, Mutation>> names{
      {"none", Mutation::none},
      {"drop-second-activation", Mutation::drop_second_activation},
      {"no-forward", Mutation::no_forward},
      {"single-buffer", Mutation::single_buffer},
      {"early-read-done", Mutation::early_read_done},
      {"no-fence", Mutation::no_fence},
      {"anybody-activates", Mutation::anybody_activates},
      {"no-solo", Mutation::no_solo},
      {"no-retract", Mutation::no_retract},
      {"loses-gradients", Mutation::loses_gradients},
      {"not-taken", Mutation::not_taken},
      {"keeps-model", Mutation::keeps_model},
      {"no-last-model", Mutation::no_last_model},
      {"one-buffer-less", Mutation::one_buffer_less},
      {"greedy-live", Mutation::greedy_live},
      {"merging-is-free", Mutation::merging_is_free},
      {"live-is-published", Mutation::live_is_published},
      {"target-is-live", Mutation::target_is_live},
      {"always-in-place", Mutation::always_in_place},
  };
  return names;
}

inline Mutation mutation_of(const std::string& name) {
  for (const auto& [known, mutation] : mutations()) {
    if (known == name) return mutation;
  }
  throw std::invalid_argument("mutation '" + name + "' is not known");
}

struct Case {
  Schedule schedule;
  std::vector<int> iterations;  // arrivals of each rank
  bool merge_once = false;
  Mutation mutation = Mutation::none;
  bool resident = false;  // the application's model lives in the buffers

  // The version of the n-th arrival; kNone for none.
  Version version_of(int arrivals) const {
    Version version = kNone;
    for (int i = 0; i < arrivals; ++i) version = schedule.next(version);
    return version;
  }

  Version last() const {
    int most = 0;
    for (const int n : iterations) most = std::max(most, n);
    return version_of(most);
  }

  // Whether a rank may wait in a group version when nothing is under way: for a candidate only, while none has arrived at it.
  // A closed rank lets everybody activate the versions that it does not arrive at. arrived(rank), closed(rank): of each rank.
  template <class Arrived, class Closed>
  bool awaits_candidate(Version version, Arrived arrived, Closed closed) const {
    for (int rank = 0; rank < schedule.world_size; ++rank) {
      if (closed(rank) && arrived(rank) < version) return false;
    }
    const std::vector<int> candidates = schedule.candidates(version);
    return std::all_of(candidates.begin(), candidates.end(), [&](int rank) { return arrived(rank) < version; });
  }

  // Agreement, the part that the schedule alone decides: the groups of a version are disjoint and cover all ranks, and
  // all members name the same group. Together with each member starting a version once, they all mean the same
  // contributions.
  void check_groups() const {
    for (Version version = schedule.first(); version <= last(); version = schedule.next(version)) {
      std::vector<Group> groups;
      for (int rank = 0; rank < schedule.world_size; ++rank) groups.push_back(schedule.group(rank, version));
      for (int rank = 0; rank < schedule.world_size; ++rank) {
        bool member = false;
        for (const int other : groups[rank]) {
          member |= other == rank;
          if (groups[other] != groups[rank]) throw Violation("agreement: members name different groups");
        }
        if (!member) throw Violation("agreement: a rank is not in its own group");
      }
    }
  }
};

struct Event {
  enum Kind { arrive, activation, exec_done, read_done, merge_done, close, finish, retract, solo };
  static constexpr int kKinds = 9;
  Kind kind;
  Version version = kNone;
  int dimension = -1;

  static const char* name(Kind kind) {
    static const char* const names[] = {"arrive",     "activation", "exec_done", "read_done",
                                        "merge_done", "close",      "finish",    "retract",   "solo"};
    return names[kind];
  }

  std::string text() const {
    std::string result = name(kind);
    if (version != kNone) result.append(" ").append(std::to_string(version));
    if (dimension != -1) result.append(" over ").append(std::to_string(dimension));
    return result;
  }
};

}  // namespace wagma::tools
