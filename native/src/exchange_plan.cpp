#include "wagma/exchange_plan.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

namespace wagma {

namespace {

// Bytes of accumulators: long enough for a message to cost more than its start, and short enough that what is summed is still in the
// cache when it is sent.
constexpr std::size_t kBlock = std::size_t{1} << 20;
// What a member gives away lies ready in a window of blocks: where ranks outnumber cores, a peer whose turn it is finds work for
// all of it, rather than one message. Rooms take memory, the window does not.
constexpr std::size_t kWindow = 16;
constexpr std::size_t kRooms = 4;
constexpr std::size_t kMessages = 512;  // posted at a time, of large groups that give to each member: each test looks at all
// In large groups the slices of such a block would be tiny, so blocks grow with the group, but not beyond this part of the model.
constexpr std::size_t kPiece = std::size_t{8} << 10;
constexpr std::size_t kBlocksOfLarge = 16;
// Below this the steps cost, not the bytes: whole models travel. In all a member receives no more than kWholeInAll at a time.
constexpr std::size_t kWhole = std::size_t{16} << 10;
constexpr std::size_t kWholeInAll = std::size_t{256} << 10;

// Elements: a cache line of float32. Blocks begin on one, and two members never write the same one.
constexpr std::size_t kLine = 16;

Slice part_of(Slice range, int parts, int index) {
  const Slice part = slice_of(range.size(), parts, index);
  return {range.begin + part.begin, range.begin + part.end};
}

std::vector<Step> halving(std::size_t count, int members, int index, bool whole) {
  std::vector<Step> steps;
  Slice range{0, count};
  for (int distance = 1; distance < members; distance *= 2) {
    const int peer = index ^ distance;
    const int side = peer > index ? 0 : 1;  // the member on the left keeps the left half
    const Slice keep = whole ? range : part_of(range, 2, side);
    const Slice give = whole ? range : part_of(range, 2, 1 - side);
    steps.push_back({{{peer, give, keep}}, keep});
    range = keep;
  }
  return steps;
}

std::vector<Step> direct(std::size_t count, int members, int index, bool whole, const std::vector<int>& adding) {
  const Slice range{0, count};
  const auto kept_by = [&](int member) {
    const auto at = std::lower_bound(adding.begin(), adding.end(), member);
    if (at == adding.end() || *at != member) return Slice{0, 0};
    return whole ? range : part_of(range, static_cast<int>(adding.size()), static_cast<int>(at - adding.begin()));
  };
  Step step;
  step.kept = kept_by(index);
  for (int peer = 0; peer < members; ++peer) {
    if (peer != index) step.moves.push_back({peer, kept_by(peer), step.kept});
  }
  return {step};
}

}  // namespace

Slice slice_of(std::size_t count, int slices, int index) {
  const std::size_t unit = count >= kLine * static_cast<std::size_t>(slices) ? kLine : 1;
  const std::size_t units = (count + unit - 1) / unit;
  const auto edge = [&](int i) {
    const std::size_t whole = units / slices, extra = units % slices;
    return std::min(count, (whole * i + std::min<std::size_t>(i, extra)) * unit);
  };
  return {edge(index), edge(index + 1)};
}

std::vector<Step> plan_of(std::size_t count, int members, int index, bool whole) {
  const bool power = members > 1 && std::has_single_bit(static_cast<unsigned>(members));
  return power ? halving(count, members, index, whole) : direct(count, members, index, whole, everybody(members));
}

std::vector<Step> sparing_plan_of(std::size_t count, int members, int index, const std::vector<int>& adding) {
  return direct(count, members, index, false, adding);
}

std::vector<int> everybody(int members) {
  std::vector<int> all(static_cast<std::size_t>(members));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Cut cut_of(std::size_t count, std::size_t accumulator_bytes, int members, int adding) {
  const std::size_t bytes = count * accumulator_bytes, group = static_cast<std::size_t>(members);
  const bool spares = adding < members;
  if (bytes <= kWhole && bytes * group <= kWholeInAll) return {count, 1, 1, 1, !spares};
  const std::size_t all = std::max(kBlock, std::min(group * kPiece, bytes / kBlocksOfLarge));
  const std::size_t wanted = all * static_cast<std::size_t>(adding) / group;
  const std::size_t blocks = (bytes + wanted - 1) / wanted;
  const std::size_t even = (count + blocks - 1) / blocks;
  Cut cut;
  cut.length = std::min(count, (even + kLine - 1) / kLine * kLine);
  cut.blocks = (count + cut.length - 1) / cut.length;
  const bool power = std::has_single_bit(group) && !spares;
  cut.window = std::min({power ? kWindow : std::clamp(kMessages / group, std::size_t{2}, kWindow), cut.blocks, kWindow});
  cut.rooms = std::min(kRooms, cut.window);
  return cut;
}

std::size_t room_of(const std::vector<Step>& plan) {
  std::size_t room = 0;
  for (const Step& step : plan) room = std::max(room, step.moves.size() * step.kept.size());
  return room;
}

Plans plans_of(std::size_t count, std::size_t accumulator_bytes, int members, int index, const std::vector<int>& adding) {
  Plans plans;
  const bool spares = static_cast<int>(adding.size()) < members;
  const Cut& cut = plans.cut = cut_of(count, accumulator_bytes, members, static_cast<int>(adding.size()));
  const auto plan = [&](std::size_t length) {
    return spares ? sparing_plan_of(length, members, index, adding) : plan_of(length, members, index, cut.whole);
  };
  plans.full = plan(cut.length);
  plans.last = plan(count - (cut.blocks - 1) * cut.length);
  constexpr std::size_t kLineBytes = 64;
  const std::size_t room = std::max(room_of(plans.full), room_of(plans.last)) * accumulator_bytes;
  plans.room_bytes = (room + kLineBytes - 1) / kLineBytes * kLineBytes;
  return plans;
}

}  // namespace wagma
