// The plans of members with messages, carried out in memory: both sides of each message agree on it, every member ends with every
// sum, and the additions are those of the association tree, for every group length, block and element.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "wagma/exchange_plan.hpp"
#include "wagma/schedule.hpp"

namespace {

using namespace wagma;

int failures = 0;

void expect(bool condition, const char* what, int members, std::size_t count) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s (members = %d, count = %zu)\n", what, members, count);
}

// A sum as the text of its additions: whatever is added in another order reads differently.
using Sums = std::vector<std::string>;

std::string added(std::vector<std::string> partial) {
  for (const auto& [into, from] : association(static_cast<int>(partial.size()))) {
    partial[into] = "(" + partial[into] + "+" + partial[from] + ")";
  }
  return partial[0];
}

std::string expected(int members) {
  std::vector<std::string> leaves;
  for (int i = 0; i < members; ++i) leaves.push_back(std::to_string(i));
  return added(leaves);
}

// One step of all members at once. What is sent is what was there before the step.
void take(std::vector<Sums>& models, const std::vector<std::vector<Step>>& plans, std::size_t number, bool adding, std::size_t count) {
  const int members = static_cast<int>(models.size());
  const std::vector<Sums> before = models;
  for (int index = 0; index < members; ++index) {
    const Step& step = plans[index][number];
    for (const Move& move : step.moves) {
      const auto& theirs = plans[move.peer][number].moves;
      const Move* back = nullptr;
      for (const Move& other : theirs) back = other.peer == index ? &other : back;
      expect(back != nullptr, "a peer expects a message", members, count);
      const Slice in = adding ? move.receive : move.send, out = adding ? back->send : back->receive;
      expect(in.begin == out.begin && in.end == out.end, "both sides mean the same part", members, count);
      if (adding) expect(in.begin == step.kept.begin && in.end == step.kept.end, "what comes is what is kept", members, count);
      if (!adding) std::copy(before[move.peer].begin() + in.begin, before[move.peer].begin() + in.end, models[index].begin() + in.begin);
    }
    if (!adding) continue;
    for (std::size_t at = step.kept.begin; at < step.kept.end; ++at) {
      std::map<int, std::string> parts{{index, before[index][at]}};
      for (const Move& move : step.moves) parts[move.peer] = before[move.peer][at];
      std::vector<std::string> ordered;
      for (const auto& [member, part] : parts) ordered.push_back(part);
      models[index][at] = added(ordered);
    }
  }
}

void carried_out(const std::vector<std::vector<Step>>& plans, std::size_t count, bool whole) {
  const int members = static_cast<int>(plans.size());
  std::vector<Sums> models;
  for (int index = 0; index < members; ++index) {
    models.emplace_back(count, std::to_string(index));
    for (const Step& step : plans[index]) {
      expect(step.moves.size() == plans[index].front().moves.size(), "every step has as many moves", members, count);
      expect(step.moves.size() * step.kept.size() <= room_of(plans[index]), "a step's parts fit into a room", members, count);
    }
  }
  for (std::size_t number = 0; number < plans[0].size(); ++number) take(models, plans, number, true, count);
  if (!whole) {
    for (std::size_t number = plans[0].size(); number-- > 0;) take(models, plans, number, false, count);
  }
  const Sums all(count, expected(members));
  for (const Sums& model : models) expect(model == all, "every member has every sum, added along the tree", members, count);
}

void plans_add_up(int members, std::size_t count, bool whole) {
  std::vector<std::vector<Step>> plans;
  for (int index = 0; index < members; ++index) {
    plans.push_back(plan_of(count, members, index, whole));
    expect(room_of(plans[index]) <= room_of(plans[0]), "the first member's room is the largest", members, count);
  }
  carried_out(plans, count, whole);
}

// Every choice of members that add up, as the bits of `choice`.
void spared_members_add_up_nothing(int members, unsigned choice, std::size_t count) {
  std::vector<int> adding;
  for (int index = 0; index < members; ++index) {
    if (choice >> index & 1) adding.push_back(index);
  }
  std::vector<std::vector<Step>> plans;
  for (int index = 0; index < members; ++index) {
    plans.push_back(sparing_plan_of(count, members, index, adding));
    if (!(choice >> index & 1)) expect(room_of(plans[index]) == 0, "whoever is spared adds up nothing", members, count);
    if (!(choice >> index & 1)) expect(plans[index].front().kept.size() == 0, "whoever is spared keeps nothing", members, count);
  }
  for (const auto& plan : plans) expect(room_of(plan) <= room_of(plans[adding[0]]), "no room is larger than the first's", members, count);
  carried_out(plans, count, false);
}

// What an exchange of any kind needs for rooms: those of the cut that it takes.
void rooms_stay_small(int members, int adding, std::size_t count, std::size_t item) {
  const Plans plans = plans_of(count, item, members, 0, everybody(adding));
  const std::size_t model = count * item;
  expect(plans.room_bytes * plans.cut.rooms <= std::max(std::size_t{5} << 20, model / 4), "rooms stay small", members, count);
  expect(!plans.cut.whole || adding == members, "nobody is spared where everybody adds up all", members, count);
  expect(plans.cut.length * (plans.cut.blocks - 1) < count && plans.cut.length * plans.cut.blocks >= count, "blocks cover", members, count);
}

// Blocks cover the model in order, no room is larger than a few MiB or a model, and a member's share of tags is enough.
void cuts_cover(int members, std::size_t count, std::size_t item) {
  const Cut cut = cut_of(count, item, members, members);
  expect(cut.length > 0 && cut.blocks > 0 && cut.length * (cut.blocks - 1) < count && cut.length * cut.blocks >= count,
         "blocks cover the model", members, count);
  expect(1 <= cut.rooms && cut.rooms <= cut.window && cut.window <= cut.blocks && cut.window <= 31, "rooms and window", members, count);
  expect(!cut.whole || cut.blocks == 1, "a whole model is one block", members, count);
  const std::size_t scratch = cut.rooms * room_of(plan_of(cut.length, members, 0, cut.whole)) * item;
  const std::size_t model = count * item;
  expect(scratch <= std::max(std::size_t{5} << 20, model / 4), "scratch is far below a model", members, count);
}

void slices_cover_the_model() {
  for (const std::size_t count : {1u, 5u, 16u, 31u, 33u, 64u, 1000u}) {
    for (int slices = 1; slices <= 9; ++slices) {
      std::size_t end = 0;
      for (int i = 0; i < slices; ++i) {
        const Slice slice = slice_of(count, slices, i);
        expect(slice.begin == end && slice.end >= slice.begin, "slices follow each other", slices, count);
        end = slice.end;
      }
      expect(end == count, "slices cover the model", slices, count);
    }
  }
}

}  // namespace

int main() {
  slices_cover_the_model();
  for (const bool whole : {false, true}) {
    for (int members = 1; members <= 17; ++members) {
      for (const std::size_t count : {1, 2, 3, 5, 16, 31, 64, 300}) plans_add_up(members, count, whole);
    }
  }
  for (int members = 2; members <= 6; ++members) {
    for (unsigned choice = 1; choice < 1u << members; ++choice) {
      for (const std::size_t count : {1, 3, 16, 64, 100}) spared_members_add_up_nothing(members, choice, count);
    }
  }
  for (const int members : {2, 3, 4, 8, 48, 128}) {
    for (const int adding : {1, 2, members - 1, members}) {
      for (const std::size_t count : {1u, 4096u, 5000u, 262145u, 25560000u}) rooms_stay_small(members, std::max(1, adding), count, 4);
    }
  }
  for (const int members : {1, 2, 3, 4, 5, 8, 48, 64, 1000, 1024}) {
    for (const std::size_t item : {4, 8}) {
      for (const std::size_t count : {1u, 7u, 4096u, 4097u, 262144u, 262145u, 1000003u, 25560000u, 400000000u}) {
        cuts_cover(members, count, item);
      }
    }
  }
  if (failures == 0) std::printf("plans of up to 17 members add up along the tree\n");
  return failures == 0 ? 0 : 1;
}
