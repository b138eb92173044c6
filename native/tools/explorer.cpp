// wagma explorer: proves the promises of the collective for a small case by visiting every reachable state. The usage
// is below.
#include "explorer.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>

#include "options.hpp"
#include "wagma/digest.hpp"

namespace wagma::tools {
namespace {

constexpr std::size_t kSoloFrom = 12;  // its place in Machine::state()

std::string bytes_of(const std::vector<Version>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Version)};
}

std::uint64_t hash_of(const GlobalState& state) {
  std::array<std::uint64_t, 3> words{state.in_flight};
  std::memcpy(&words[1], state.local.data(), sizeof state.local);
  return digest(words.data(), sizeof words);
}

std::string join(const std::vector<Version>& numbers) {
  std::string text;
  for (const Version number : numbers) {
    if (!text.empty()) text += ' ';
    text += std::to_string(number);
  }
  return text;
}

std::string text_of(const Output& output) {
  if (const auto* f = std::get_if<Forward>(&output)) return "F " + join({f->version, f->dimension, f->rank});
  if (const auto* s = std::get_if<Start>(&output)) {
    return "S " + join({s->version, s->buffer, s->target, s->stamp, s->oldest});
  }
  if (const auto* r = std::get_if<Retracted>(&output)) return "R " + join({r->buffer, r->stamp, r->oldest});
  if (const auto* s = std::get_if<Solo>(&output)) return "O " + join({s->version, s->dimension, s->rank});
  const auto& c = std::get<Complete>(output);
  return "C " + join({c.version, c.fresh, c.merged_version, c.buffer});
}

}  // namespace

Explorer::Explorer(const Case& config, std::uint64_t max_states, bool exact)
    : case_(config),
      exact_(exact),
      max_states_(max_states),
      ranks_(config.schedule.world_size),
      dimensions_(dimensions(ranks_)),
      versions_(static_cast<int>(config.last()) + 1),
      messages_(dimensions_ * (versions_ + (config.schedule.selective() ? versions_ + 1 : 0))),
      events_(kMessage + messages_),
      locals_(static_cast<std::size_t>(ranks_)),
      reactions_(static_cast<std::size_t>(ranks_)),
      local_ids_(static_cast<std::size_t>(ranks_)),
      table_(1 << 16) {
  if (ranks_ > kMaxRanks || ranks_ * messages_ > 64) {
    throw UsageError("too large: at most " + std::to_string(kMaxRanks) + " ranks, and 64 possible messages");
  }
  for (int rank = 0; rank < ranks_; ++rank) {
    groups_.emplace_back();
    for (Version version = 0; version < versions_; ++version)
      groups_.back().push_back(case_.schedule.group(rank, version));
  }
}

Explorer::Result Explorer::run() {
  try {
    case_.check_groups();
    GlobalState initial;
    for (int rank = 0; rank < ranks_; ++rank)
      initial.local[static_cast<std::size_t>(rank)] = intern(rank, Rank(case_, rank));
    add(initial, 0, 0, 0);
  } catch (const std::runtime_error& error) {
    result_.violation = error.what();
  }
  for (std::uint32_t index = 0; index < nodes_.size() && result_.complete && result_.violation.empty(); ++index)
    expand(index);
  result_.states = nodes_.size();
  return result_;
}

Event Explorer::event_of(int rank, int local, int number) const {
  const Rank& state = locals_[static_cast<std::size_t>(rank)][static_cast<std::size_t>(local)].rank;
  switch (number) {
    case kApplication: return state.application_event();
    case kExecDone: return {Event::exec_done, state.started()};
    case kReadDone: return {Event::read_done};
    case kFinish: return {Event::finish, case_.last()};
  }
  const int message = number - kMessage, solo = message - dimensions_ * versions_;
  if (solo < 0) return {Event::activation, message % versions_, message / versions_};
  return {Event::solo, solo % (versions_ + 1), solo / (versions_ + 1)};
}

std::uint16_t Explorer::intern(int rank, const Rank& state) {
  const auto r = static_cast<std::size_t>(rank);
  const auto [found, added] = local_ids_[r].try_emplace(bytes_of(exact_ ? state.state() : state.signature()),
                                                        static_cast<std::uint16_t>(locals_[r].size()));
  if (added) {
    if (locals_[r].size() > 0xFFFF) throw UsageError("too large: more than 65536 states of one rank");
    locals_[r].push_back(
        {state, state.started(), state.phase() == Rank::closed, state.application_ready(), exact_ ? 0 : idle_messages(rank, state)});
    reactions_[r].resize(reactions_[r].size() + static_cast<std::size_t>(events_));
  }
  return found->second;
}

// Messages that this rank would neither act upon nor forward, now or later, since what it knows and has forwarded
// only grows. Delivering one changes nothing, so it may as well not be there. From a version that nobody arrives at, a
// Solo lets nobody do anything.
std::uint64_t Explorer::idle_messages(int rank, const Rank& state) const {
  const auto known = state.machine().state();
  const auto told = known.end() - dimensions_, forwarded = told - dimensions_;
  const Version solo_from = known[kSoloFrom];
  std::uint64_t idle = 0;
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    for (Version version = 0; version < versions_; ++version) {
      const bool sent = std::all_of(forwarded + dimension + 1, told, [&](Version v) { return v >= version; });
      if (sent && version <= state.machine().activated()) idle |= bit_of(rank, message_of(false, dimension, version));
    }
    for (Version version = 0; case_.schedule.selective() && version <= versions_; ++version) {
      const auto lower = [&](Version v) { return v != kNone && v <= version; };
      if (version == versions_ || (lower(solo_from) && std::all_of(told + dimension + 1, known.end(), lower))) {
        idle |= bit_of(rank, message_of(true, dimension, version));
      }
    }
  }
  return idle;
}

const Explorer::Transition& Explorer::react(int rank, int local, int number) {
  const auto r = static_cast<std::size_t>(rank);
  const auto place = static_cast<std::size_t>(local * events_ + number);
  if (reactions_[r][place].known) return reactions_[r][place];
  Rank next = locals_[r][static_cast<std::size_t>(local)].rank;
  const auto before = next.machine().state();
  const Event event = event_of(rank, local, number);
  const Outputs outputs = next.apply(event);
  Transition transition{true, 0, 0};
  for (const Output& output : outputs) {
    if (const auto* forward = std::get_if<Forward>(&output)) {
      if (forward->version >= versions_) throw Violation("activation: of a version beyond the last");
      transition.sent |= bit_of(forward->rank, message_of(false, forward->dimension, forward->version));
    } else if (const auto* solo = std::get_if<Solo>(&output)) {
      transition.sent |= bit_of(solo->rank, message_of(true, solo->dimension, solo->version));
    }
  }
  record_edge(rank, before, event, outputs, next.machine().state());
  transition.next = intern(rank, next);
  return reactions_[r][place] = transition;
}

void Explorer::record_edge(int rank, const std::vector<Version>& before, const Event& event, const Outputs& outputs,
                           const std::vector<Version>& after) {
  std::string line = std::to_string(rank) + ";" + join(before) + ";" + Event::name(event.kind) + " " +
                     join({event.version, event.dimension}) + ";";
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (i) line += ',';
    line += text_of(outputs[i]);
  }
  line += ';';
  line += join(after);
  if (seen_edges_.insert(line).second) machine_edges_.push_back(line);
}

bool Explorer::started_by_all(const GlobalState& state, int rank) const {
  const Version version = local(state, rank).started;
  for (const int member : groups_[static_cast<std::size_t>(rank)][static_cast<std::size_t>(version)]) {
    if (local(state, member).started < version) return false;
  }
  return true;
}

bool Explorer::expand(std::uint32_t index) {
  const GlobalState state = nodes_[index].state;
  bool all_closed = true;
  for (int rank = 0; rank < ranks_; ++rank) all_closed &= local(state, rank).closed;
  bool system = state.in_flight != 0, application = false;
  for (int rank = 0; rank < ranks_; ++rank) {
    const Rank& self = local(state, rank).rank;
    if (local(state, rank).ready) {
      application = true;
      if (!follow(index, rank, kApplication, 0)) return false;
    }
    const bool movable = (self.executing() || self.being_read()) && started_by_all(state, rank);
    if (movable && self.executing()) {
      system = true;
      if (!follow(index, rank, kExecDone, 0)) return false;
    }
    if (movable && self.being_read()) {
      system = true;
      if (!follow(index, rank, kReadDone, 0)) return false;
    }
    if (all_closed && !self.finished()) {
      system = true;
      if (!follow(index, rank, kFinish, 0)) return false;
    }
  }
  for (std::uint64_t rest = state.in_flight; rest; rest &= rest - 1) {
    const int bit = std::countr_zero(rest);
    if (!follow(index, bit / messages_, kMessage + bit % messages_, std::uint64_t{1} << bit)) return false;
  }
  if (system) return true;
  try {
    check_quiet(state, application);
  } catch (const Violation& violation) {
    result_.violation = violation.what();
    result_.path = path_to(index);
  }
  return result_.violation.empty();
}

bool Explorer::follow(std::uint32_t index, int rank, int number, std::uint64_t delivered) {
  const auto r = static_cast<std::size_t>(rank);
  GlobalState next = nodes_[index].state;
  ++result_.transitions;
  try {
    const Transition& transition = react(rank, next.local[r], number);
    next.local[r] = transition.next;
    next.in_flight &= ~delivered;
    if (next.in_flight & transition.sent) throw Violation("activation: a message is sent twice over one dimension");
    next.in_flight |= transition.sent;
    for (int other = 0; other < ranks_; ++other) next.in_flight &= ~local(next, other).idle;
  } catch (const UsageError&) {
    throw;
  } catch (const std::runtime_error& error) {  // a broken promise, or an event that the machine refuses
    result_.violation = error.what();
    result_.path = path_to(index);
    result_.path.push_back("rank " + std::to_string(rank) + ": " +
                           event_of(rank, nodes_[index].state.local[r], number).text());
    return false;
  }
  return add(next, index, rank, number);
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
    const Rank& self = local(state, rank).rank;
    if (self.phase() == Rank::computing && !local(state, rank).ready) {
      throw Violation("progress: a rank that wants to arrive has no buffer to arrive with");
    }
    if (self.phase() != Rank::waiting) continue;
    if (self.waits_in_group_version()) {
      if (case_.awaits_candidate(self.arrived(), [&](int r) { return local(state, r).rank.arrived(); },
                                 [&](int r) { return local(state, r).closed; })) {
        continue;
      }
      throw Violation("progress: a rank waits in a group version until others arrive");
    }
    bool excused = false;
    for (int other = 0; other < ranks_; ++other) {
      const Local& they = local(state, other);
      excused |= !they.closed && they.rank.arrived() < self.arrived();
    }
    if (!excused) throw Violation("progress: a rank waits in a sync at which all have arrived");
  }
  if (anything_enabled) return;
  for (int rank = 0; rank < ranks_; ++rank) {
    if (!local(state, rank).rank.machine().done())
      throw Violation("deadlock: nothing can happen and a rank is not done");
  }
}

bool Explorer::add(const GlobalState& state, std::uint32_t parent, int rank, int event) {
  const std::size_t mask = table_.size() - 1;
  std::size_t slot = hash_of(state) & mask;
  for (; table_[slot]; slot = (slot + 1) & mask) {
    if (nodes_[table_[slot] - 1].state == state) return true;
  }
  if (nodes_.size() == max_states_) {
    result_.complete = false;
    return false;
  }
  nodes_.push_back({state, parent, static_cast<std::uint8_t>(rank), static_cast<std::uint8_t>(event)});
  table_[slot] = static_cast<std::uint32_t>(nodes_.size());
  if (nodes_.size() * 2 > table_.size()) grow();
  return true;
}

void Explorer::grow() {
  const std::size_t size = table_.size() * 2;
  table_ = {};  // free the old one first; everything it knew is in nodes_
  table_.resize(size);
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    std::size_t slot = hash_of(nodes_[i].state) & (size - 1);
    while (table_[slot]) slot = (slot + 1) & (size - 1);
    table_[slot] = static_cast<std::uint32_t>(i + 1);
  }
}

std::vector<std::string> Explorer::path_to(std::uint32_t index) {
  std::vector<std::string> path;
  for (; index != 0; index = nodes_[index].parent) {
    const Node& node = nodes_[index];
    const int before = nodes_[node.parent].state.local[node.rank];
    path.insert(path.begin(),
                "rank " + std::to_string(node.rank) + ": " + event_of(node.rank, before, node.event).text());
  }
  return path;
}

}  // namespace wagma::tools

namespace {

using namespace wagma::tools;

constexpr const char* kUsage =
    "usage: explorer --ranks P --group-size S --sync-period T --iterations N[,N,...] [--merge-once] [--resident]\n"
    "                [--no-groups] [--accumulate] [--initiators M] [--seed N] [--edges FILE] [--max-states N] [--mutate NAME] [--exact]\n"
    "Visits every reachable state; prints one JSON line. Exit status 0: all promises hold, 1: one is broken, 2: not "
    "decided.\n";

Case case_of(const Options& options) {
  Case config;
  config.schedule.world_size = static_cast<int>(options.integer("--ranks", 2));
  config.schedule.group_size = static_cast<int>(options.integer("--group-size", 2));
  config.schedule.sync_period = options.integer("--sync-period", 0);
  config.schedule.grouped = !options.has("--no-groups");
  config.schedule.accumulate = options.has("--accumulate");
  config.schedule.initiators = static_cast<int>(options.integer("--initiators", 0));
  config.schedule.seed = options.integer("--seed", 0);
  config.schedule.check();
  config.merge_once = options.has("--merge-once");
  config.resident = options.has("--resident");
  config.mutation = mutation_of(options.text("--mutate", "none"));
  for (const auto n : options.integers("--iterations", ',', "2")) config.iterations.push_back(static_cast<int>(n));
  if (config.iterations.size() == 1)
    config.iterations.resize(static_cast<std::size_t>(config.schedule.world_size), config.iterations[0]);
  if (static_cast<int>(config.iterations.size()) != config.schedule.world_size)
    throw UsageError("--iterations: one, or one per rank");
  return config;
}

void print(const Explorer::Result& result, std::size_t local_edges, double seconds) {
  const char* verdict = !result.violation.empty() ? "violation" : result.complete ? "ok" : "incomplete";
  std::printf("{\"result\": \"%s\", \"states\": %llu, \"edges\": %llu, \"local_edges\": %zu, \"seconds\": %.3f",
              verdict, static_cast<unsigned long long>(result.states),
              static_cast<unsigned long long>(result.transitions), local_edges, seconds);
  if (!result.violation.empty()) {
    std::printf(", \"violation\": \"%s\", \"path\": [", result.violation.c_str());
    for (std::size_t i = 0; i < result.path.size(); ++i) std::printf("%s\"%s\"", i ? ", " : "", result.path[i].c_str());
    std::printf("]");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(
        argc, argv,
        {"--ranks", "--group-size", "--sync-period", "--iterations", "--initiators", "--seed", "--edges", "--max-states",
         "--mutate"},
        {"--merge-once", "--resident", "--no-groups", "--accumulate", "--exact"});
    const auto begin = std::chrono::steady_clock::now();
    // 60 million states take about 3 GiB.
    Explorer explorer(case_of(options), static_cast<std::uint64_t>(options.integer("--max-states", 60'000'000)),
                      options.has("--exact"));
    const auto result = explorer.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (options.has("--edges")) {
      std::ofstream file(options.text("--edges", ""));
      for (const auto& line : explorer.machine_edges()) file << line << '\n';
      if (!file.flush()) throw UsageError("--edges: cannot write the file");
    }
    print(result, explorer.machine_edges().size(), seconds.count());
    return !result.violation.empty() ? 1 : result.complete ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "explorer: " << error.what() << '\n' << kUsage;
    return 2;
  }
}
