#include "explorer_compare.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace wagma::tools {
namespace {

using Key = std::vector<std::uint64_t>;

// Of both searches, in words that mean the same in both: the signatures of ranks' states, numbered.
//
// An exact search delivers what others drop. Two kinds of Solo do something then, though nothing that matters: one from a version
// that nobody arrives at is noted and told on; one that comes to a rank that has closed and knows it from itself (with P no power of
// two its own comes back) is noted by the harness, for arrivals that it will not see. With `exact` words leave that out.
class Words {
 public:
  Words(const Case& config, bool exact)
      : exact_(exact), last_(config.last()), dimensions_(dimensions(config.schedule.world_size)) {}

  std::uint64_t of(const Rank& state) {
    std::vector<Version> key = state.signature();
    if (exact_) {
      const auto machine = key.begin() + static_cast<std::ptrdiff_t>(state.machine().state().size()) + kOwnRoles;
      leave_out(key[kSoloFrom]);
      leave_out(machine[kOwnSoloFrom]);
      std::for_each(machine - dimensions_, machine, [&](Version& told) { leave_out(told); });
      if (state.phase() == Rank::closed) machine[kOwnSoloFrom] = kNone;
    }
    return words_.emplace(std::move(key), words_.size()).first->second;
  }

  // Messages that are left out of what is sent: Solo from versions that nobody arrives at.
  Messages ignored(const Locals& locals, int ranks) const {
    Messages messages = 0;
    for (int message = 0; exact_ && message < locals.messages(); ++message) {
      if (locals.delivery_of(message).version <= last_) continue;
      for (int rank = 0; rank < ranks; ++rank) messages |= locals.bit_of(rank, message);
    }
    return messages;
  }

 private:
  // Places in Rank::signature(): in the machine's part, how many roles stand in that besides, in what follows it.
  static constexpr std::ptrdiff_t kSoloFrom = 12, kOwnRoles = 5, kOwnSoloFrom = 10;

  void leave_out(Version& version) const {
    if (version > last_) version = kNone;
  }

  bool exact_;
  Version last_;
  int dimensions_;
  std::map<std::vector<Version>, std::uint64_t> words_;
};

struct Seen {
  std::map<Key, bool> quiet;  // with all images, if symmetry is made use of; and whether it is settled
  std::set<Key> kinds;        // of those that differ by a symmetry one
  std::set<Key> edges;
  ExploreResult result;
};

// Whether no application could merge or close unheard, which a reduced search does before it looks at a quiet state.
bool settled(const Locals& locals, const GlobalState& state, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    const LocalId id = state.local[static_cast<std::size_t>(rank)];
    const Facts& self = locals.facts(rank, id);
    const Event::Kind kind = kind_of(self.application);
    if (!self.ready || (kind != Event::merge_done && kind != Event::close)) continue;
    const Transition& next = locals.transition(rank, id, Locals::kApplication);
    if (next.sent == 0 && locals.facts(rank, next.next).started == self.started) return false;
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
    const bool is_settled = settled(locals, state, ranks);
    seen.quiet.emplace(key, is_settled);
    Key least = key;
    for (const Permutation& symmetry : symmetries) {
      Key image = key;
      for (std::size_t rank = 0; rank < key.size(); ++rank) image[symmetry[rank]] = key[rank];
      if (options.symmetry) seen.quiet.emplace(image, is_settled);
      least = std::min(least, image);
    }
    seen.kinds.insert(least);
  };
  Explorer explorer(config, options);
  seen.result = explorer.run();
  const Locals& locals = explorer.locals();
  const Messages ignored = words.ignored(locals, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    for (std::size_t id = 0; id < locals.size(); ++id) {
      if (!locals.facts(rank, static_cast<LocalId>(id)).known) continue;
      const std::uint64_t before = words.of(locals.state(rank, static_cast<LocalId>(id)));
      for (int number = 0; number < locals.events(); ++number) {
        const Transition& transition = locals.transition(rank, static_cast<LocalId>(id), number);
        if (transition.kind != Transition::fine) continue;
        const std::uint64_t after = words.of(locals.state(rank, transition.next));
        const Messages sent = transition.sent & ~ignored;
        if (number >= Locals::kMessage && before == after && sent == 0) continue;  // idle: not kept
        seen.edges.insert({static_cast<std::uint64_t>(rank), before, static_cast<std::uint64_t>(number), after, sent});
      }
    }
  }
  return seen;
}

}  // namespace

Comparison compare(const Case& config, const ExploreOptions& reduced, const ExploreOptions& all) {
  Words words(config, all.exact);
  const Seen full = see(config, all, words), less = see(config, reduced, words);
  Comparison found{full.result, less.result, full.kinds.size(), less.kinds.size(), full.edges.size(), less.edges.size(), ""};
  if (!full.result.complete || !less.result.complete) {
    found.difference = "a search is not complete";
  } else if (!full.result.violation.empty() || !less.result.violation.empty()) {
    if (full.result.violation.empty() != less.result.violation.empty()) found.difference = "only one search finds a broken promise";
  } else if (!std::includes(less.edges.begin(), less.edges.end(), full.edges.begin(), full.edges.end())) {
    found.difference = "the reduced search misses an edge of a rank";
  } else if (!reduced.order && less.edges.size() != full.edges.size()) {  // with it, more may be computed than can happen
    found.difference = "the reduced search finds an edge that there is not";
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
