// Which versions exist, which are syncs, and who executes them together: the twin of wagma/core/schedule.py, groups.py and
// trees.py. tests/test_native_twins.py holds the two against each other.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace wagma {

using Version = std::int64_t;
using Group = std::vector<int>;  // ranks in association order

bool is_power_of_two(std::int64_t n);
int dimensions(int world_size);                        // of the activation trees: log2 P, rounded up
int neighbour(int world_size, int rank, int dimension);
Group group_of(int world_size, int group_size, Version iteration, int rank);
std::vector<std::pair<int, int>> association(int leaves);  // (into, from), in order; the sum ends in leaf 0

struct Schedule {
  int world_size = 1;
  int group_size = 1;
  Version sync_period = 0;  // 0: never
  bool grouped = true;      // false: the syncs only
  bool fixed = false;       // the groups of version 0 in every version
  int initiators = 0;       // how many ranks may activate a version; 0: everybody
  std::int64_t seed = 0;    // of which these are
  bool accumulate = false;  // group versions add up undelivered gradients instead of the newest models
  Version begin = 0;        // the first iteration: 0, or where a resumed run goes on

  void check() const;  // throws std::invalid_argument with one line that names the value and what is allowed
  Version next(Version version) const;
  Version previous(Version version) const;
  Version first() const { return next(begin - 1); }
  bool is_sync(Version version) const;
  Group group(int rank, Version version) const;
  bool selective() const { return initiators != 0 && initiators != world_size; }
  bool may_activate(int rank, Version version) const;
  std::vector<int> candidates(Version version) const;  // in ascending order
};

}  // namespace wagma
