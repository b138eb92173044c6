// The tags of an execution's messages; exchange_mpi.hpp says what they are for.
#pragma once

#include <cstddef>

#include "wagma/schedule.hpp"

namespace wagma {

constexpr int kTagsOfVersion = 64;  // "begun", then two for each place in the window
constexpr int kTagVersions = 511;   // the standard guarantees tags up to 32767

inline int begun_tag(Version version) { return static_cast<int>(version % kTagVersions) * kTagsOfVersion; }

// Adding up and spreading differ only so that a defect becomes a message of the wrong kind rather than a wrong sum.
inline int block_tag(Version version, std::size_t place, bool adding) {
  return begun_tag(version) + 1 + 2 * static_cast<int>(place) + (adding ? 0 : 1);
}

}  // namespace wagma
