#include "explorer.hpp"

#include <algorithm>
#include <bit>

#include "options.hpp"

namespace wagma::tools {
namespace {

constexpr std::uint32_t kProgressEvery = 1 << 12;

}  // namespace

// A machine for which the reductions do not hold, a mutant say, is searched with less of them, at last with none.
ExploreResult explore(const Case& config, const ExploreOptions& options) {
  ExploreOptions search = options;
  for (std::string not_reduced;; search.exact = !search.symmetry && !search.order, search.symmetry = search.order = false) {
    try {
      ExploreResult result = Explorer(config, search).run();
      result.not_reduced = not_reduced;
      return result;
    } catch (const ReductionError& error) {
      not_reduced = error.what();
    }
  }
}

Explorer::Explorer(const Case& config, const ExploreOptions& options)
    : case_(config),
      options_(options),
      ranks_(config.schedule.world_size),
      symmetries_(options.symmetry && !options.exact ? symmetries_of(config) : std::vector<Permutation>{}),
      locals_(config, options.exact, options.order && !options.exact, symmetries_),
      order_(locals_, options.rules),
      nodes_(ranks_, ranks_ * locals_.messages(), options.max_states, options.max_bytes) {
  for (int rank = 0; rank < ranks_; ++rank) {
    groups_.emplace_back();
    for (Version version = 0; version < locals_.versions(); ++version) groups_.back().push_back(case_.schedule.group(rank, version));
  }
  result_.symmetries = symmetries_.size() + 1;
  result_.order = options.order && !options.exact;
}

ExploreResult Explorer::run() {
  try {
    case_.check_groups();
    GlobalState initial;
    for (int rank = 0; rank < ranks_; ++rank) initial.local[static_cast<std::size_t>(rank)] = locals_.initial(rank);
    // The initial state is its own image: its path needs no renaming.
    result_.complete = nodes_.add(least(initial).state, 0) == Nodes::Added::is_new;
  } catch (const Violation& error) {
    result_.violation = error.what();
  }
  for (std::uint32_t index = 0; index < nodes_.size() && result_.complete && result_.violation.empty(); ++index) {
    if (options_.progress && index % kProgressEvery == 0) options_.progress(nodes_.size(), nodes_.size() - index);
    expand(index);
  }
  result_.states = nodes_.size();
  result_.bytes = nodes_.bytes();
  result_.local_states = locals_.size();
  for (const std::string* edge : locals_.edges()) result_.edges.push_back(*edge);
  return result_;
}

bool Explorer::started_by_all(const GlobalState& state, int rank) const {
  const Version version = facts(state, rank).started;
  for (const int member : groups_[static_cast<std::size_t>(rank)][static_cast<std::size_t>(version)]) {
    if (facts(state, member).started < version) return false;
  }
  return true;
}

void Explorer::enabled(const GlobalState& state, Steps& steps) const {
  steps.all.clear();
  bool all_closed = true;
  for (int rank = 0; rank < ranks_; ++rank) all_closed &= facts(state, rank).closed;
  steps.system = state.in_flight != 0;
  const auto add_system = [&](int rank, int number) {
    steps.system = true;
    steps.all.push_back({rank, number, 0});
  };
  for (int rank = 0; rank < ranks_; ++rank) {
    const Facts& self = facts(state, rank);
    if (self.ready) steps.all.push_back({rank, Locals::kApplication, 0});
    const bool movable = (self.executing || self.read) && started_by_all(state, rank);
    if (movable && self.executing) add_system(rank, Locals::kExecDone);
    if (movable && self.read) add_system(rank, Locals::kReadDone);
    if (all_closed && !self.finished) add_system(rank, Locals::kFinish);
  }
  for (Messages rest = state.in_flight; rest; rest &= rest - 1) {
    const int bit = std::countr_zero(rest);
    steps.all.push_back({bit / locals_.messages(), Locals::kMessage + bit % locals_.messages(), Messages{1} << bit});
  }
}

const Explorer::Step* Explorer::sufficient(const GlobalState& state, const Steps& steps) {
  Messages coming = state.in_flight;
  for (int rank = 0; rank < ranks_; ++rank) coming |= facts(state, rank).may_send;
  for (const Step& step : steps.all) {
    const Facts& self = facts(state, step.rank);
    if (step.number == Locals::kApplication) {
      const Event::Kind kind = kind_of(self.application);
      if (!options_.rules.application || (kind != Event::merge_done && kind != Event::close)) continue;
    }
    const Messages to_rank = locals_.messages() == 0 ? 0 : coming >> (step.rank * locals_.messages()) & locals_.all();
    if (order_.suffices(step.rank, state.local[static_cast<std::size_t>(step.rank)], to_rank, step.number)) return &step;
  }
  return nullptr;
}

GlobalState Explorer::apply(const GlobalState& state, const Step& step) {
  GlobalState next = state;
  LocalId& local = next.local[static_cast<std::size_t>(step.rank)];
  const Transition& transition = locals_.react(step.rank, local, step.number);
  if (transition.kind == Transition::broken) locals_.explain(step.rank, local, step.number);
  local = transition.next;
  next.in_flight &= ~step.delivered;
  if (next.in_flight & transition.sent) throw Violation("activation: a message is sent twice over one dimension");
  next.in_flight |= transition.sent;
  for (int other = 0; other < ranks_; ++other) next.in_flight &= ~facts(next, other).idle;
  return next;
}

bool Explorer::expand(std::uint32_t index) {
  const GlobalState state = nodes_.state(index);
  enabled(state, steps_);
  if (result_.order) {
    if (const Step* alone = sufficient(state, steps_)) return follow(index, state, *alone);
  }
  for (const Step& step : steps_.all) {
    if (!follow(index, state, step)) return false;
  }
  if (steps_.system) return true;
  ++result_.quiet;
  if (options_.on_quiet) options_.on_quiet(locals_, state);
  try {
    check_quiet(state, !steps_.all.empty());
  } catch (const Violation& violation) {
    violated(violation.what(), index, nullptr);
  }
  return result_.violation.empty();
}

bool Explorer::follow(std::uint32_t index, const GlobalState& state, const Step& step) {
  ++result_.transitions;
  try {
    const Nodes::Added added = nodes_.add(least(apply(state, step)).state, index);
    result_.complete = added != Nodes::Added::no_room;
  } catch (const UsageError&) {
    throw;
  } catch (const ReductionError&) {
    throw;
  } catch (const std::runtime_error& error) {  // a broken promise, or an event that the machine refuses
    violated(error.what(), index, &step);
    return false;
  }
  return result_.complete;
}

// What a machine says names its rank: as that of the beginning, not as that of the state in which it is written down.
void Explorer::violated(const std::string& what, std::uint32_t index, const Step* last) {
  result_.violation = what;
  const Permutation names = path_to(index, last);
  if (last == nullptr) return;
  const LocalId local = nodes_.state(index).local[static_cast<std::size_t>(last->rank)];
  if (locals_.transition(last->rank, local, last->number).kind != Transition::broken) return;
  try {
    locals_.explain(names[static_cast<std::size_t>(last->rank)], local, last->number);
  } catch (const std::runtime_error& error) {
    result_.violation = error.what();
  }
}

// Progress. Nothing is in flight and no execution can go on: only applications can still do something (arrive, merge,
// close), or nobody. In such a state no rank may wait in a group version, unless all of its candidates are yet to arrive
// at it and nobody has closed before it, and a rank may wait in a sync only for a rank that has neither arrived at it
// nor closed. That proves the promise "an arrived rank completes without waiting for a
// late rank's arrival" for *every* state: without application events each run of the system is finite (each event uses
// up an activation, an execution, a read or a finish), whatever it does it ends in a quiet state, and that state is
// reachable too, hence checked here. Merging counts as the application's: nobody may wait for it either. No exception
// for versions behind a fence is needed: whoever waits in a group version has executed the sync before it, so all ranks
// have started that sync, and nothing after it up to the version is fenced. For the same reason a rank that lacks a live buffer
// gets one without any arrival: none may lack it here.
void Explorer::check_quiet(const GlobalState& state, bool anything_enabled) const {
  for (int rank = 0; rank < ranks_; ++rank) {
    const Rank& self = rank_of(state, rank);
    if (self.phase() == Rank::computing && !facts(state, rank).ready) {
      throw Violation("progress: a rank that wants to arrive has no buffer to arrive with");
    }
    if (self.phase() != Rank::waiting) continue;
    if (self.waits_in_group_version()) {
      if (case_.awaits_candidate(self.arrived(), [&](int r) { return rank_of(state, r).arrived(); },
                                 [&](int r) { return facts(state, r).closed; })) {
        continue;
      }
      throw Violation("progress: a rank waits in a group version until others arrive");
    }
    bool excused = false;
    for (int other = 0; other < ranks_; ++other) {
      excused |= !facts(state, other).closed && rank_of(state, other).arrived() < self.arrived();
    }
    if (!excused) throw Violation("progress: a rank waits in a sync at which all have arrived");
  }
  if (anything_enabled) return;
  for (int rank = 0; rank < ranks_; ++rank) {
    if (!rank_of(state, rank).machine().done())
      throw Violation("deadlock: nothing can happen and a rank is not done");
  }
}

// States are written down under the least of their names; the path goes back to the ranks of the beginning. Which event leads
// from a state to the next is found again by trying.
Permutation Explorer::path_to(std::uint32_t index, const Step* last) {
  std::vector<std::uint32_t> chain{index};
  while (chain.back() != 0) chain.push_back(nodes_.parent(chain.back()));
  std::reverse(chain.begin(), chain.end());
  Permutation names = identity();  // rank in the state -> rank of the beginning
  const auto add = [&](const GlobalState& state, const Step& step) {
    const LocalId local = state.local[static_cast<std::size_t>(step.rank)];
    result_.path.push_back("rank " + std::to_string(names[static_cast<std::size_t>(step.rank)]) + ": " +
                           locals_.event_of(step.rank, local, step.number).text());
  };
  Steps steps;
  for (std::size_t i = 0; i + 1 < chain.size(); ++i) {
    const GlobalState state = nodes_.state(chain[i]), next = nodes_.state(chain[i + 1]);
    enabled(state, steps);
    for (const Step& step : steps.all) {
      const LocalId local = state.local[static_cast<std::size_t>(step.rank)];
      if (locals_.transition(step.rank, local, step.number).kind != Transition::fine) continue;
      const Canonical found = least(apply(state, step));
      if (found.state != next) continue;
      add(state, step);
      names = after(names, inverse(found.permutation, ranks_), ranks_);
      break;
    }
  }
  if (last) add(nodes_.state(index), *last);
  return names;
}

}  // namespace wagma::tools
