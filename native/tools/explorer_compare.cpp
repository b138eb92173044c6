#include "explorer_compare.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace wagma::tools {
namespace {

using Key = std::vector<std::uint64_t>;

// Of both searches, in words that mean the same in both: the signatures of ranks' states, numbered.
class Words {
 public:
  std::uint64_t of(const Rank& state) { return words_.emplace(state.signature(), words_.size()).first->second; }

 private:
  std::map<std::vector<Version>, std::uint64_t> words_;
};

struct Seen {
  std::map<Key, bool> quiet;  // and whether it is settled
  std::set<Key> edges;
  ExploreResult result;
};

// Whether no application could merge or close, which a reduced search does before it looks at a quiet state.
bool settled(const Locals& locals, const GlobalState& state, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    const Facts& self = locals.facts(rank, state.local[static_cast<std::size_t>(rank)]);
    const Event::Kind kind = kind_of(self.application);
    if (self.ready && (kind == Event::merge_done || kind == Event::close)) return false;
  }
  return true;
}

Seen see(const Case& config, ExploreOptions options, Words& words) {
  const int ranks = config.schedule.world_size;
  const std::vector<Permutation> symmetries = symmetries_of(config);
  Seen seen;
  options.on_quiet = [&](const Locals& locals, const GlobalState& state) {
    Key key;
    for (int rank = 0; rank < ranks; ++rank) key.push_back(words.of(locals.state(rank, state.local[static_cast<std::size_t>(rank)])));
    Key least = key;
    for (const Permutation& symmetry : symmetries) {
      Key image = key;
      for (std::size_t rank = 0; rank < key.size(); ++rank) image[symmetry[rank]] = key[rank];
      least = std::min(least, image);
    }
    seen.quiet.emplace(least, settled(locals, state, ranks));
  };
  Explorer explorer(config, options);
  seen.result = explorer.run();
  const Locals& locals = explorer.locals();
  for (int rank = 0; rank < ranks; ++rank) {
    for (std::size_t id = 0; id < locals.size(); ++id) {
      if (!locals.facts(rank, static_cast<LocalId>(id)).known) continue;
      const std::uint64_t before = words.of(locals.state(rank, static_cast<LocalId>(id)));
      for (int number = 0; number < locals.events(); ++number) {
        const Transition& transition = locals.transition(rank, static_cast<LocalId>(id), number);
        if (transition.kind != Transition::fine) continue;
        const std::uint64_t after = words.of(locals.state(rank, transition.next));
        if (number >= Locals::kMessage && before == after && transition.sent == 0) continue;  // idle: not kept
        seen.edges.insert({static_cast<std::uint64_t>(rank), before, static_cast<std::uint64_t>(number), after, transition.sent});
      }
    }
  }
  return seen;
}

}  // namespace

Comparison compare(const Case& config, const ExploreOptions& reduced, const ExploreOptions& all) {
  Words words;
  const Seen full = see(config, all, words), less = see(config, reduced, words);
  Comparison found{full.result, less.result, full.quiet.size(), less.quiet.size(), full.edges.size(), less.edges.size(), ""};
  if (!full.result.complete || !less.result.complete) {
    found.difference = "a search is not complete";
  } else if (!full.result.violation.empty() || !less.result.violation.empty()) {
    if (full.result.violation.empty() != less.result.violation.empty()) found.difference = "only one search finds a broken promise";
  } else if (!std::includes(less.edges.begin(), less.edges.end(), full.edges.begin(), full.edges.end())) {
    found.difference = "the reduced search misses an edge of a rank";
  }
  if (!found.difference.empty() || !full.result.violation.empty()) return found;
  for (const auto& [state, is_settled] : full.quiet) {
    const bool kept = less.quiet.contains(state);
    const bool due = is_settled || !reduced.order || !reduced.rules.application;
    if (due && !kept) found.difference = "the reduced search misses a quiet state";
  }
  for (const auto& [state, is_settled] : less.quiet) {
    if (!full.quiet.contains(state)) found.difference = "the reduced search finds a quiet state that there is not";
  }
  return found;
}

}  // namespace wagma::tools
