// Order: of the events that are possible in a state, often one alone has to be followed, since every run that puts it off
// ends where a run ends that begins with it.
//
// What has to be kept: all quiet states (nothing under way, Explorer::check_quiet), where progress is checked, and all
// edges of single ranks, where all else is checked.
//
// Events of different ranks are independent: an event changes its own rank only; what it does to others is to put messages in
// flight, to let a group have started, to let all have closed, each of which can make an event possible and never
// impossible. An event stays possible until it happens; a message may also become idle, which is as if it had happened
// without effect. Each event uses something up (an arrival, a message, an execution, a read, a finish), so that all
// runs are finite and no event is put off for ever. So take a state s, an event e of rank r that is possible in it, and any run from s to
// a quiet state: e is in it, and moving e to its front concerns the events of r before it only. These are what
// `suffices` goes through, in every order in which they could happen: `coming` has all messages to r that are in flight
// or may still be sent, and whatever depends on other ranks (a group has started, all have closed) is taken as possible. e is
// enough if for each event f that may come before it one of these holds:
//
// * commute: f, e and e, f lead r to the same state, and e is enough after f as well.
// * exchange: after e the run goes on as it would have gone on after f, with f in the place of e: for whatever comes in
//   between, e, ..., f leads to the state that f, ..., e leads to. (Of exec_done and read_done either may be the last one
//   before the next start, of which it only matters that it is the last. Neither commutes with an arrival if the other has been.)
//
// In both, r has at each point of the new run sent what it had sent in the old one, and started what it had started,
// so that all others can do what they did. It may have sent more: an activation, where later ones of a higher version, or
// Solo of a lower one, go the same way in the old run too. When such a one is there, the former is idle (checked on each edge), and
// it is before the next quiet state. So the new run ends in the same state.
//
// Then, by induction on the length of the longest run from s: all quiet states that can be reached from s are reached by following
// e alone. The same for edges of a rank: make a run end with the edge, and e follow if it is not in it; either the edge is
// still there after e has been moved, or it is one of those before e at r, which have been computed here, with all checks.
// A promise that is broken there is taken for `not enough`, so that all events are followed and it is found if it can
// be reached. What can not may be computed too, as `coming` is more than what comes: edges are a few more than in a search of all states.
//
// Events of applications. Nobody waits for them in a quiet state, so it may be reached with any of them still to come, and
// in general they have to be followed with all else. merge_done and close are treated as above where they send and
// start nothing (checked in each state that they are moved over). Then quiet states in which such an event has not
// happened yet are left out, and nothing is lost: if q is such a state and e such an event of r, then progress that is violated
// in q is violated after e. Whoever waits still waits, and has less excuse: what is asked of others is who has arrived,
// which is unchanged, and who has not closed. A rank that lacks a buffer still does. The state after e is quiet as well, or
// e was the last close: then nobody waited. A deadlock has no possible event at all, so it is no such q.
//
// Cross-checked in tests, against searches of all states: explorer_compare.hpp.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>

#include "explorer_locals.hpp"

namespace wagma::tools {

struct OrderRules {
  bool exchange = true;     // events may change places
  bool application = true;  // merge_done and close, too
};

class Order {
 public:
  Order(Locals& locals, OrderRules rules) : locals_(locals), rules_(rules) {}

  // Whether it is enough to follow this event, which is possible now. coming: messages in flight to the rank, and those
  // that others may still send to it, as numbers.
  bool suffices(int rank, LocalId id, Messages coming, int number);

 private:
  struct Step {
    bool possible = false;
    LocalId next = 0;
    Messages sent = 0;
  };
  struct Pair {  // of the states of a rank in two runs, and what it has sent in each
    LocalId one, two;
    Messages coming, sent_one, sent_two;
    bool operator==(const Pair&) const = default;
  };
  struct PairHash {
    std::size_t operator()(const Pair& pair) const;
  };
  struct Exchange {
    int rank, event, other;
    const Facts& named;  // of the state in which the two events got their names
  };
  using Pairs = std::unordered_set<Pair, PairHash>;

  bool examine(int rank, LocalId id, Messages coming, int number);
  bool commute(int rank, LocalId id, Messages coming, int event, int other);
  bool exchange(int rank, LocalId id, Messages coming, int event, int other);
  bool exchange(const Exchange& what, const Pair& pair, Pairs& seen);
  Step step(int rank, LocalId id, int number, const Facts& named);
  Messages without_idle(int rank, LocalId id, Messages coming) const;
  template <class Visit>
  bool every_other(int rank, LocalId id, Messages coming, int event, Visit visit);
  bool is_silent(int rank, LocalId id, const Step& step) const;
  bool covers(Messages now, Messages before) const;

  Locals& locals_;
  OrderRules rules_;
  std::unordered_map<std::uint64_t, bool> known_;
};

}  // namespace wagma::tools
