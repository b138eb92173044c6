#include "explorer_symmetry.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace wagma::tools {
namespace {

bool is_symmetry(const Case& config, const Permutation& permutation) {
  const Schedule& schedule = config.schedule;
  const int ranks = schedule.world_size;
  const auto to = [&](int rank) { return static_cast<int>(permutation[static_cast<std::size_t>(rank)]); };
  for (int rank = 0; rank < ranks; ++rank) {
    if (config.iterations[static_cast<std::size_t>(rank)] != config.iterations[static_cast<std::size_t>(to(rank))]) return false;
    for (int dimension = 0; dimension < dimensions(ranks); ++dimension) {
      if (to(neighbour(ranks, rank, dimension)) != neighbour(ranks, to(rank), dimension)) return false;
    }
    for (Version version = schedule.first(); version <= config.last(); version = schedule.next(version)) {
      if (schedule.may_activate(rank, version) != schedule.may_activate(to(rank), version)) return false;
      // Machines do not know their groups, so edges hardly show them: but groups decide which executions may end.
      Group mapped, group = schedule.group(to(rank), version);
      for (const int member : schedule.group(rank, version)) mapped.push_back(to(member));
      std::sort(mapped.begin(), mapped.end());
      std::sort(group.begin(), group.end());
      if (mapped != group) return false;
    }
  }
  return true;
}

}  // namespace

std::vector<Permutation> symmetries_of(const Case& config) {
  std::vector<Permutation> found;
  if (config.schedule.world_size > kMaxRanks) return found;  // too large for any search, as Locals is about to say
  Permutation permutation = identity();
  const auto end = permutation.begin() + config.schedule.world_size;
  while (std::next_permutation(permutation.begin(), end)) {
    if (is_symmetry(config, permutation)) found.push_back(permutation);
  }
  return found;
}

Messages moved(Messages messages, const Permutation& permutation, int ranks, int to_each) {
  if (messages == 0) return 0;
  Messages result = 0;
  const Messages all = ~Messages{0} >> (64 - to_each);
  for (int rank = 0; rank < ranks; ++rank) {
    result |= (messages >> (rank * to_each) & all) << (permutation[static_cast<std::size_t>(rank)] * to_each);
  }
  return result;
}

GlobalState moved(const GlobalState& state, const Permutation& permutation, int ranks, int to_each) {
  GlobalState result;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks); ++rank) result.local[permutation[rank]] = state.local[rank];
  result.in_flight = moved(state.in_flight, permutation, ranks, to_each);
  return result;
}

Permutation identity() {
  Permutation permutation;
  std::iota(permutation.begin(), permutation.end(), std::uint8_t{0});
  return permutation;
}

Permutation inverse(const Permutation& permutation, int ranks) {
  Permutation result = identity();
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks); ++rank) result[permutation[rank]] = static_cast<std::uint8_t>(rank);
  return result;
}

Permutation after(const Permutation& second, const Permutation& first, int ranks) {
  Permutation result = identity();
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks); ++rank) result[rank] = second[first[rank]];
  return result;
}

Canonical canonical(const GlobalState& state, const std::vector<Permutation>& symmetries, int ranks, int to_each) {
  Canonical least{state, identity()};
  for (const Permutation& symmetry : symmetries) {
    const GlobalState image = moved(state, symmetry, ranks, to_each);
    if (std::tie(image.local, image.in_flight) < std::tie(least.state.local, least.state.in_flight)) least = {image, symmetry};
  }
  return least;
}

}  // namespace wagma::tools
