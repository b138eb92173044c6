// Which parts of a model a member of a group sends, receives and adds up, in which order, when members have only messages. No
// messages and no numbers here: exchange_mpi.hpp carries a plan out, tests/test_exchange_plan.cpp does so without MPI.
//
// A model is cut into blocks, and each goes through the same steps by itself, several at a time. First members *add up*: in each
// step a member gives parts away and adds to the part that it keeps what others give it, until everybody has the sum of a slice
// of its own. Then they *spread* the sums: the same steps backwards, with sending and receiving exchanged.
//
// A power of two halves the part in each step and exchanges with the member at distance 1, 2, 4, ...: neighbours, then pairs, then
// fours, which is the association tree (wagma/core/trees.py) of such a group. Any other length adds up in one step: everybody gets
// its slice of all contributions and sums them along the tree. Tiny models are not cut at all: whole models travel in half
// as many steps, and everybody sums for itself.
//
// Members may be spared, because their devices are busy: then the others add up, in one step. Whoever is spared gives its contribution
// away and is given the sums; nobody waits for anything that it computes.
#pragma once

#include <cstddef>
#include <vector>

namespace wagma {

// Element range [begin, end) of slice `index` of `slices`: sizes differ by at most one element, rounded to whole cache lines
// where that still leaves work for everyone.
struct Slice {
  std::size_t begin;
  std::size_t end;
  std::size_t size() const { return end - begin; }
};
Slice slice_of(std::size_t count, int slices, int index);

struct Move {  // a message in either direction, or in none where a part is empty
  int peer;    // index among the members
  Slice send;
  Slice receive;
};

struct Step {
  std::vector<Move> moves;  // by rising peer
  Slice kept;               // every move receives it; the sum has the peers' parts and the own one in the order of the members
};

// The steps that add up a block of `count` elements, as the member at `index` takes them: the first one exchanges contributions, the
// others partial sums. With `whole` nobody gives anything away, and no spreading follows; else it is the steps in
// reverse, each sending `receive` and receiving `send`.
std::vector<Step> plan_of(std::size_t count, int members, int index, bool whole);
std::vector<int> everybody(int members);  // 0, 1, ...
// The same where only `adding` add up: indices, rising, at least one.
std::vector<Step> sparing_plan_of(std::size_t count, int members, int index, const std::vector<int>& adding);

// How a model of `count` elements is cut: blocks of `length` elements, the last one of what is left. `window` of them are under way at a
// time, in each of which peers find what this member gives away; `rooms` of these are being added up.
struct Cut {
  std::size_t length = 0;
  std::size_t blocks = 0;
  std::size_t window = 1;
  std::size_t rooms = 1;
  bool whole = false;
};
// The fewer add up, the shorter are the blocks, so that their rooms do not grow.
Cut cut_of(std::size_t count, std::size_t accumulator_bytes, int members, int adding);

// Elements that the largest step of a plan receives to add up; the size of a room. No member's is larger than that of
// the first one that adds up.
std::size_t room_of(const std::vector<Step>& plan);

// The plans of a member for a model: of a block of full length, and of the last one.
struct Plans {
  Cut cut;
  std::vector<Step> full, last;
  std::size_t room_bytes = 0;  // of each room, in whole cache lines
};
Plans plans_of(std::size_t count, std::size_t accumulator_bytes, int members, int index, const std::vector<int>& adding);

}  // namespace wagma
