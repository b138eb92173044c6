#include "explorer_order.hpp"

#include <bit>

#include "wagma/digest.hpp"

namespace wagma::tools {
namespace {

Messages as_message(int number) { return number < Locals::kMessage ? 0 : Messages{1} << (number - Locals::kMessage); }

}  // namespace

std::size_t Order::PairHash::operator()(const Pair& pair) const {
  const std::array<std::uint64_t, 4> words{std::uint64_t{pair.one} << 32 | pair.two, pair.coming, pair.sent_one, pair.sent_two};
  return digest(words.data(), sizeof words);
}

bool Order::suffices(int rank, LocalId id, Messages coming, int number) {
  coming = without_idle(rank, id, coming) & ~as_message(number);
  const std::uint64_t key = ((coming << 16 | id) << 3 | static_cast<unsigned>(rank)) << 6 | static_cast<unsigned>(number);
  if (const auto found = known_.find(key); found != known_.end()) return found->second;
  const bool result = examine(rank, id, coming, number);
  known_.emplace(key, result);
  return result;
}

bool Order::examine(int rank, LocalId id, Messages coming, int event) {
  const Step alone = step(rank, id, event, locals_.facts(rank, id));
  if (!alone.possible) return false;
  if (event == Locals::kApplication && !is_silent(rank, id, alone)) return false;
  return every_other(rank, id, coming, event, [&](int other) {
    return commute(rank, id, coming, event, other) || (rules_.exchange && exchange(rank, id, coming, event, other));
  });
}

// other, event and event, other lead to the same; and so on after `other`.
bool Order::commute(int rank, LocalId id, Messages coming, int event, int other) {
  const Facts here = locals_.facts(rank, id);
  const Step first = step(rank, id, event, here), second = step(rank, id, other, here);
  if (!first.possible || !second.possible) return false;
  const Step then = step(rank, first.next, other, here), late = step(rank, second.next, event, here);
  if (!then.possible || !late.possible || then.next != late.next) return false;
  if (!covers(first.sent | then.sent, second.sent | late.sent)) return false;
  const Messages message = as_message(event);
  if (message && without_idle(rank, second.next, message) == 0) return true;
  return suffices(rank, second.next, coming & ~as_message(other), event);
}

// event, ..., other leads to what other, ..., event does, whatever comes between.
bool Order::exchange(int rank, LocalId id, Messages coming, int event, int other) {
  if (other == Locals::kApplication) return false;
  const Facts here = locals_.facts(rank, id);
  const Step first = step(rank, id, event, here), second = step(rank, id, other, here);
  if (!first.possible || !second.possible) return false;
  Pairs seen;
  const Pair pair{first.next, second.next, coming & ~as_message(other), first.sent, second.sent};
  return exchange({rank, event, other, here}, pair, seen);
}

bool Order::exchange(const Exchange& what, const Pair& pair, Pairs& seen) {
  if (!seen.insert(pair).second) return true;
  const int rank = what.rank;
  const Facts two = locals_.facts(rank, pair.two);
  // Others may act on what `other` has sent or started before `event` comes: by then it has to be there in the new run, too. That it is
  // in the end does not say so. No case is known in which a search without this check loses something.
  if (locals_.facts(rank, pair.one).started < two.started || (pair.sent_two & ~pair.sent_one)) return false;
  const Step one_ends = step(rank, pair.one, what.other, what.named), two_ends = step(rank, pair.two, what.event, what.named);
  if (!one_ends.possible || !two_ends.possible || one_ends.next != two_ends.next) return false;
  if (!covers(pair.sent_one | one_ends.sent, pair.sent_two | two_ends.sent)) return false;
  if (what.event == Locals::kApplication && !is_silent(rank, pair.two, two_ends)) return false;
  const Messages message = as_message(what.event);
  if (message && without_idle(rank, pair.two, message) == 0) return true;
  return every_other(rank, pair.two, pair.coming, what.event, [&](int between) {
    const Step one = step(rank, pair.one, between, two), other = step(rank, pair.two, between, two);
    return one.possible && other.possible &&
           exchange(what,
                    {one.next, other.next, pair.coming & ~as_message(between), pair.sent_one | one.sent, pair.sent_two | other.sent},
                    seen);
  });
}

// All that may happen at the rank in this state, but for `event`; more than can, as other ranks are not looked at.
template <class Visit>
bool Order::every_other(int rank, LocalId id, Messages coming, int event, Visit visit) {
  const Facts here = locals_.facts(rank, id);
  const std::array<std::pair<int, bool>, 4> own{{{Locals::kApplication, here.ready},
                                                {Locals::kExecDone, here.executing},
                                                {Locals::kReadDone, here.read},
                                                {Locals::kFinish, here.closed && !here.finished}}};
  for (const auto& [number, possible] : own) {
    if (possible && number != event && !visit(number)) return false;
  }
  for (Messages rest = without_idle(rank, id, coming); rest; rest &= rest - 1) {
    const int number = Locals::kMessage + std::countr_zero(rest);
    if (number != event && !visit(number)) return false;
  }
  return true;
}

bool Order::is_silent(int rank, LocalId id, const Step& step) const {
  return step.sent == 0 && locals_.facts(rank, step.next).started == locals_.facts(rank, id).started;
}

// All that was sent before is sent now, and what is sent beyond that will be ignored once the other messages are there.
bool Order::covers(Messages now, Messages before) const {
  if (before & ~now) return false;
  for (Messages rest = now & ~before; rest; rest &= rest - 1) {
    if ((locals_.dominators(std::countr_zero(rest)) & before) == 0) return false;
  }
  return true;
}

Order::Step Order::step(int rank, LocalId id, int number, const Facts& named) {
  const Facts& here = locals_.facts(rank, id);
  switch (number) {
    case Locals::kApplication:
      if (!here.ready || here.application != named.application) return {};
      break;
    case Locals::kExecDone:
      if (!here.executing || here.started != named.started) return {};
      break;
    case Locals::kReadDone:
      if (!here.read || here.started != named.started) return {};
      break;
    case Locals::kFinish:
      if (!here.closed || here.finished) return {};
      break;
    default:
      if (without_idle(rank, id, as_message(number)) == 0) return {true, id, 0};
  }
  const Transition& transition = locals_.react(rank, id, number);
  if (transition.kind == Transition::broken) return {};
  return {true, transition.next, transition.sent};
}

Messages Order::without_idle(int rank, LocalId id, Messages coming) const {
  if (locals_.messages() == 0) return 0;
  return coming & ~(locals_.facts(rank, id).idle >> (rank * locals_.messages()));
}

}  // namespace wagma::tools
