#include "wagma/schedule.hpp"

#include "wagma/digest.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>
#include <string>

namespace wagma {
namespace {

// Python's // and %: rounded towards minus infinity, so that both twins agree on -1 too. The divisor is positive.
Version floor_div(Version a, Version b) { return a / b - (a % b < 0); }
Version floor_mod(Version a, Version b) { return a - floor_div(a, b) * b; }

int log2_exact(int power_of_two) { return std::countr_zero(static_cast<unsigned>(power_of_two)); }

int ceil_log(int n, int base) {
  int k = 0;
  for (std::int64_t power = 1; power < n; power *= base) ++k;
  return k;
}

Group butterfly_group(int world_size, int group_size, Version iteration, int rank) {
  const int phases = log2_exact(world_size);
  const int per_iteration = log2_exact(group_size);
  const auto first = phases ? static_cast<int>(floor_mod(iteration * per_iteration, phases)) : 0;
  Group group(static_cast<std::size_t>(group_size));
  int mask = 0;
  for (int j = 0; j < per_iteration; ++j) mask |= 1 << (first + j) % phases;
  group[0] = rank & ~mask;
  // Leaf i has bit j set where the member differs from the base in phase j: each phase doubles the group.
  for (int j = 0; j < per_iteration; ++j) {
    const int bit = 1 << (first + j) % phases;
    for (int i = 0; i < 1 << j; ++i)
      group[static_cast<std::size_t>(i + (1 << j))] = group[static_cast<std::size_t>(i)] | bit;
  }
  return group;
}

// One riffle deals `cards` places onto `piles` piles in turn and stacks the piles. Python keeps tables of the orders
// after 0, 1, 2,
// ... riffles; here each place is followed through the riffles by arithmetic, which needs no table, no cache and no
// lock.
struct Riffle {
  int piles, size, larger;  // the first `larger` piles have size + 1 cards

  int forth(int place) const {
    const int pile = place % piles;
    return pile * size + std::min(pile, larger) + place / piles;
  }
  int back(int place) const {
    const int cut = larger * (size + 1);
    if (place < cut) return place % (size + 1) * piles + place / (size + 1);
    return (place - cut) % size * piles + larger + (place - cut) / size;
  }
};

Group riffle_group(int world_size, int group_size, Version iteration, int rank) {
  const int groups = (world_size + group_size - 1) / group_size;
  const int orders = std::max(1, ceil_log(world_size, std::max(2, group_size)));
  const auto riffles = static_cast<int>(floor_mod(iteration, orders));
  const auto rotation = static_cast<int>(floor_mod(iteration, world_size));
  // Groups are cut from the rotated order, and are as even as its piles: the same `larger` and `size`.
  const Riffle riffle{groups, world_size / groups, world_size % groups};

  int place = rank;
  for (int k = 0; k < riffles; ++k) place = riffle.forth(place);
  place = static_cast<int>(floor_mod(place - rotation, world_size));
  const int cut = riffle.larger * (riffle.size + 1);
  const bool larger = place < cut;
  const int length = riffle.size + larger;
  const int start = larger ? place / length * length : cut + (place - cut) / length * length;

  Group group(static_cast<std::size_t>(length));
  for (int i = 0; i < length; ++i) {
    int member = (start + i + rotation) % world_size;
    for (int k = 0; k < riffles; ++k) member = riffle.back(member);
    group[static_cast<std::size_t>(i)] = member;
  }
  return group;
}

Group everyone(int world_size) {
  Group group(static_cast<std::size_t>(world_size));
  std::iota(group.begin(), group.end(), 0);
  return group;
}

// The upper 64 bits of word * bound, without a type of 128 bits: bound has at most 32 bits.
int scaled(std::uint64_t word, std::uint64_t bound) {
  return static_cast<int>(((word >> 32) * bound + ((word & 0xFFFFFFFFu) * bound >> 32)) >> 32);
}

}  // namespace

bool is_power_of_two(std::int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

int dimensions(int world_size) { return std::bit_width(static_cast<unsigned>(world_size - 1)); }

int neighbour(int world_size, int rank, int dimension) {
  if (is_power_of_two(world_size)) return rank ^ (1 << dimension);
  return static_cast<int>((rank + (std::int64_t{1} << dimension)) % world_size);
}

Group group_of(int world_size, int group_size, Version iteration, int rank) {
  if (is_power_of_two(world_size) && is_power_of_two(group_size)) {
    return butterfly_group(world_size, group_size, iteration, rank);
  }
  return riffle_group(world_size, group_size, iteration, rank);
}

std::vector<std::pair<int, int>> association(int leaves) {
  std::vector<std::pair<int, int>> steps;
  for (int stride = 1; stride < leaves; stride *= 2) {
    for (int i = 0; i < leaves - stride; i += 2 * stride) steps.emplace_back(i, i + stride);
  }
  return steps;
}

void Schedule::check() const {
  const auto text = [](auto value) { return std::to_string(value); };
  if (world_size < 1) throw std::invalid_argument("world_size = " + text(world_size) + ": must be at least 1");
  if (group_size < 1 || group_size > world_size) {
    throw std::invalid_argument("group_size = " + text(group_size) +
                                ": must be from 1 to world_size = " + text(world_size));
  }
  if (sync_period < 0 || (sync_period == 0 && !grouped)) {
    throw std::invalid_argument("sync_period = " + text(sync_period) +
                                ": must be at least 1, or 0 for never with group collectives");
  }
  if (initiators < 0 || initiators > world_size) {
    throw std::invalid_argument("initiators = " + text(initiators) +
                                ": must be from 0 (everybody) to world_size = " + text(world_size));
  }
  if (seed < 0) throw std::invalid_argument("seed = " + text(seed) + ": must be from 0 to 2^63 - 1");
  if (accumulate && !grouped) {
    throw std::invalid_argument("accumulate = True: must be False without group collectives");
  }
  if (begin < 0) throw std::invalid_argument("begin = " + text(begin) + ": must be at least 0");
}

Version Schedule::next(Version version) const {
  if (grouped) return version + 1;
  return floor_div(version + 1, sync_period) * sync_period + sync_period - 1;
}

Version Schedule::previous(Version version) const { return version - (grouped ? 1 : sync_period); }

bool Schedule::is_sync(Version version) const { return sync_period != 0 && floor_mod(version + 1, sync_period) == 0; }

Group Schedule::group(int rank, Version version) const {
  if (group_size != world_size && !is_sync(version)) {
    return group_of(world_size, group_size, fixed ? 0 : version, rank);
  }
  return everyone(world_size);
}

bool Schedule::may_activate(int rank, Version version) const {
  if (!selective() || is_sync(version)) return true;
  const std::vector<int> chosen = candidates(version);
  return std::binary_search(chosen.begin(), chosen.end(), rank);
}

// Floyd's sampling; draw j is wagma.core.mixing.bits(seed, "initiators", j, version), scaled to 0..j by its upper bits.
std::vector<int> Schedule::candidates(Version version) const {
  if (!selective()) return everyone(world_size);
  constexpr std::uint64_t kPurpose = 0x7520D219u;  // zlib.crc32(b"initiators")
  constexpr std::uint64_t kStep = 0x9E3779B97F4A7C15u;
  auto state = static_cast<std::uint64_t>(seed);
  for (const std::uint64_t word : {kPurpose, static_cast<std::uint64_t>(version)}) {
    state = detail::mix64((state ^ word) + kStep);
  }
  std::vector<int> chosen;
  for (int j = world_size - initiators; j < world_size; ++j) {
    const std::uint64_t word = detail::mix64(detail::mix64((state ^ static_cast<std::uint64_t>(j)) + kStep));
    const int rank = scaled(word, static_cast<std::uint64_t>(j) + 1);
    const auto place = std::lower_bound(chosen.begin(), chosen.end(), rank);
    if (place == chosen.end() || *place != rank) {
      chosen.insert(place, rank);
    } else {
      chosen.push_back(j);  // larger than any before it
    }
  }
  return chosen;
}

}  // namespace wagma
