#include "explorer_locals.hpp"

#include <algorithm>
#include <bit>
#include <set>

#include "explorer_symmetry.hpp"
#include "options.hpp"

namespace wagma::tools {
namespace {

constexpr std::size_t kSoloFrom = 12;  // its place in Machine::state()

std::string bytes_of(const std::vector<Version>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Version)};
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

std::vector<Version> told(const Case& config) {
  std::set<Version> versions;
  for (const int iterations : config.iterations) versions.insert(config.schedule.next(config.version_of(iterations)));
  if (!config.schedule.selective()) versions.clear();
  return {versions.begin(), versions.end()};
}

}  // namespace

Locals::Locals(const Case& config, bool exact, bool ordered, std::vector<Permutation> symmetries)
    : case_(config),
      exact_(exact),
      ordered_(ordered),
      symmetries_(std::move(symmetries)),
      ranks_(config.schedule.world_size),
      dimensions_(dimensions(ranks_)),
      versions_(static_cast<int>(config.last()) + 1),
      told_(told(config)),
      messages_(dimensions_ * (versions_ + static_cast<int>(told_.size()))),
      events_(kMessage + messages_),
      facts_(at(ranks_)),
      states_(at(ranks_)),
      transitions_(at(ranks_)) {
  if (ranks_ > kMaxRanks || ranks_ * messages_ > 64) {
    throw UsageError("too large: at most " + std::to_string(kMaxRanks) + " ranks and 64 possible messages; these are " +
                     std::to_string(ranks_) + " and " + std::to_string(ranks_ * messages_));
  }
  find_dominators();
}

LocalId Locals::initial(int rank) { return intern(rank, Rank(case_, rank)); }

Event Locals::event_of(int rank, LocalId id, int number) const {
  const Rank& state = this->state(rank, id);
  switch (number) {
    case kApplication: return state.application_event();
    case kExecDone: return {Event::exec_done, state.started()};
    case kReadDone: return {Event::read_done};
    case kFinish: return {Event::finish, case_.last()};
  }
  return delivery_of(number - kMessage);
}

Event Locals::delivery_of(int message) const {
  const int solo = message - dimensions_ * versions_, solos = static_cast<int>(told_.size());
  if (solo < 0) return {Event::activation, message % versions_, message / versions_};
  return {Event::solo, told_[at(solo % solos)], solo / solos};
}

LocalId Locals::intern(int rank, const Rank& state) {
  const std::size_t count = ids_.size();
  const auto [found, added] =
      ids_.try_emplace(bytes_of(exact_ ? state.state() : state.signature()), static_cast<LocalId>(count));
  if (added) {
    if (count > 0xFFFF) throw UsageError("too large: more than 65536 states of a rank");
    for (int r = 0; r < ranks_; ++r) {
      facts_[at(r)].resize(count + 1);
      states_[at(r)].resize(count + 1);
      transitions_[at(r)].resize((count + 1) * static_cast<std::size_t>(events_));
    }
  }
  const LocalId id = found->second;
  if (!facts(rank, id).known) {
    place(rank, id, state);
    for (const Permutation& symmetry : symmetries_) {
      const int image = symmetry[at(rank)];
      if (!facts(image, id).known) place(image, id, state.at_rank(image));
    }
  }
  return id;
}

void Locals::place(int rank, LocalId id, const Rank& state) {
  const Event next = state.application_ready() ? state.application_event() : Event{Event::arrive, kNone, -1};
  if (!exact_) check_idle(rank, state, idle_messages(rank, state));
  facts_[at(rank)][id] = {exact_ ? 0 : idle_messages(rank, state),
                          still_sent_by(rank, state),
                          state.started(),
                          number_of(next),
                          true,
                          state.application_ready(),
                          state.phase() == Rank::closed,
                          state.executing(),
                          state.being_read(),
                          state.finished()};
  states_[at(rank)][id] = std::make_unique<const Rank>(state);
}

// Messages that this rank would neither act upon nor forward, now or later, since what it knows and has forwarded
// only grows. Delivering one changes nothing, so it may as well not be there. From a version that nobody arrives at, a
// Solo lets nobody do anything.
Messages Locals::idle_messages(int rank, const Rank& state) const {
  const auto known = state.machine().state();
  const auto told = known.end() - dimensions_, forwarded = told - dimensions_;
  const Version solo_from = known[kSoloFrom];
  Messages idle = 0;
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    for (Version version = 0; version < versions_; ++version) {
      const bool sent = std::all_of(forwarded + dimension + 1, told, [&](Version v) { return v >= version; });
      if (sent && version <= state.machine().activated()) idle |= bit_of(rank, activation_of(dimension, version));
    }
    for (std::size_t i = 0; i < told_.size(); ++i) {
      const auto lower = [&](Version v) { return v != kNone && v <= told_[i]; };
      if (told_[i] > case_.last() || (lower(solo_from) && std::all_of(told + dimension + 1, known.end(), lower))) {
        idle |= bit_of(rank, solo_of(dimension, i));
      }
    }
  }
  return idle;
}

// Over each dimension a rank forwards rising versions and tells falling ones: a claim that each edge is checked for.
Messages Locals::still_sent_by(int rank, const Rank& state) const {
  const auto known = state.machine().state();
  const auto told = known.end() - dimensions_, forwarded = told - dimensions_;
  Messages messages = 0;
  for (int dimension = 0; dimension < dimensions_; ++dimension) {
    const int receiver = neighbour(ranks_, rank, dimension);
    for (Version version = 0; version < versions_; ++version) {
      if (forwarded[dimension] < version) messages |= bit_of(receiver, activation_of(dimension, version));
    }
    for (std::size_t i = 0; i < told_.size(); ++i) {
      if (told[dimension] == kNone || told_[i] < told[dimension]) messages |= bit_of(receiver, solo_of(dimension, i));
    }
  }
  return messages;
}

void Locals::find_dominators() {
  const auto dominators = [&](int receiver, int message) -> Messages& {
    return dominators_[at(std::countr_zero(bit_of(receiver, message)))];
  };
  for (int receiver = 0; receiver < ranks_; ++receiver) {
    for (int dimension = 0; dimension < dimensions_; ++dimension) {
      for (Version version = 0; version < versions_; ++version) {
        for (Version later = version + 1; later < versions_; ++later) {
          dominators(receiver, activation_of(dimension, version)) |= bit_of(receiver, activation_of(dimension, later));
        }
      }
      for (std::size_t i = 0; i < told_.size(); ++i) {
        for (std::size_t earlier = 0; earlier < i; ++earlier) {
          dominators(receiver, solo_of(dimension, i)) |= bit_of(receiver, solo_of(dimension, earlier));
        }
      }
    }
  }
}

const Transition& Locals::compute(int rank, LocalId id, int number) {
  const auto place = static_cast<std::size_t>(id) * static_cast<std::size_t>(events_) + static_cast<std::size_t>(number);
  const Transition transition = compute_one(rank, id, number);
  transitions_[at(rank)][place] = transition;
  for (const Permutation& symmetry : symmetries_) {
    const int image = symmetry[at(rank)];
    if (transitions_[at(image)][place].kind == Transition::unknown) {
      const Transition other = compute_one(image, id, number);
      transitions_[at(image)][place] = other;
    }
    const Transition& other = transitions_[at(image)][place];
    if (other.kind != transition.kind || other.next != transition.next ||
        other.sent != moved(transition.sent, symmetry, ranks_, messages_)) {
      throw ReductionError("ranks that should be symmetric are not");
    }
  }
  return transitions_[at(rank)][place];
}

Transition Locals::compute_one(int rank, LocalId id, int number) {
  Rank next = state(rank, id);
  const auto before = next.machine().state();
  const Event event = event_of(rank, id, number);
  Transition transition{Transition::fine, 0, 0};
  try {
    const Outputs outputs = next.apply(event);
    transition.sent = sent_by(outputs);
    record_edge(rank, before, event, outputs, next.machine().state());
  } catch (const UsageError&) {
    throw;
  } catch (const std::runtime_error&) {  // a broken promise, or an event that the machine refuses
    return {Transition::broken, 0, 0};
  }
  transition.next = intern(rank, next);
  if (!exact_) check_reducible(rank, id, number, transition);
  return transition;
}

void Locals::explain(int rank, LocalId id, int number) const {
  Rank next = state(rank, id);
  sent_by(next.apply(event_of(rank, id, number)));
  throw std::logic_error("an event that was refused is not any more");
}

Messages Locals::sent_by(const Outputs& outputs) const {
  Messages sent = 0;
  for (const Output& output : outputs) {
    if (const auto* forward = std::get_if<Forward>(&output)) {
      if (forward->version >= versions_) throw Violation("activation: of a version beyond the last");
      sent |= bit_of(forward->rank, activation_of(forward->dimension, forward->version));
    } else if (const auto* solo = std::get_if<Solo>(&output)) {
      const auto place = std::find(told_.begin(), told_.end(), solo->version);
      if (place == told_.end()) throw Violation("solo: of a version that nobody has closed before");
      sent |= bit_of(solo->rank, solo_of(solo->dimension, static_cast<std::size_t>(place - told_.begin())));
    }
  }
  return sent;
}

// That it does nothing with them, now; that they stay idle, check_reducible sees.
void Locals::check_idle(int rank, const Rank& state, Messages idle) const {
  for (int message = 0; message < messages_; ++message) {
    if ((idle & bit_of(rank, message)) == 0) continue;
    const Event event = delivery_of(message);
    if (event.version > case_.last()) continue;  // a Solo, which is noted and told on, and of no use to anybody
    Rank next = state;
    const Outputs outputs = next.apply(event);
    if (!outputs.empty() || next.machine().state() != state.machine().state()) throw ReductionError("a message that is ignored does something");
  }
}

// What the reductions rely on. Of messages: what a rank ignores, it ignores from then on. Of orders (explorer_order.hpp): a rank
// sends what it may still send, and each once; what it may send and what it has started only ever go one way; what it has
// got, it ignores, and all that this dominates.
void Locals::check_reducible(int rank, LocalId id, int number, const Transition& transition) const {
  const Facts &before = facts(rank, id), &after = facts(rank, transition.next);
  bool holds = (before.idle & ~after.idle) == 0;
  if (ordered_) {
    holds &= (transition.sent & ~before.may_send) == 0 && (after.may_send & ~(before.may_send & ~transition.sent)) == 0 &&
             after.started >= before.started && (!before.closed || after.closed);
    if (number >= kMessage) holds &= (after.idle & bit_of(rank, number - kMessage)) != 0;
    for (int other = 0; other < messages_; ++other) {
      const Messages bit = bit_of(rank, other);
      if (dominators(std::countr_zero(bit)) & after.idle) holds &= (after.idle & bit) != 0;
    }
  }
  if (!holds) throw ReductionError("what a rank sends, starts or ignores does not go one way");
}

void Locals::record_edge(int rank, const std::vector<Version>& before, const Event& event, const Outputs& outputs,
                         const std::vector<Version>& after) {
  std::string line = std::to_string(rank) + ";" + join(before) + ";" + Event::name(event.kind) + " " +
                     join({event.version, event.dimension}) + ";";
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (i) line += ',';
    line += text_of(outputs[i]);
  }
  line += ';';
  line += join(after);
  const auto [found, added] = seen_edges_.insert(std::move(line));
  if (added) edges_.push_back(&*found);
}

}  // namespace wagma::tools
