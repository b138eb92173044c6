// Symmetry: ranks that may be exchanged for each other, found by trying, so that of the states which differ by that only
// one is searched.
//
// A permutation of the ranks is a symmetry if it maps neighbours over each dimension to neighbours over the same one, the
// groups of each version to groups of that version, candidates to candidates, and each rank to one with as many
// iterations. The machine of a rank uses its rank for nothing else (whom it tells, whether it is a candidate), so such a
// permutation maps each transition of the system to a transition, and reachable states to reachable states; promises and
// progress do not name ranks. Not only argued: Locals::compute computes each edge of a rank at all of its images as well, and compares.
//
// P a power of two: neighbours are r XOR 2^k, so at most the P translations r XOR c are symmetries; else r + 2^k mod P, at
// most the P rotations; fewer where groups, candidates or ends differ.
#pragma once

#include <vector>

#include "explorer_locals.hpp"

namespace wagma::tools {

// All but the identity.
std::vector<Permutation> symmetries_of(const Case& config);

// Messages to each rank become messages to the one that it is put in the place of.
Messages moved(Messages messages, const Permutation& permutation, int ranks, int to_each);
GlobalState moved(const GlobalState& state, const Permutation& permutation, int ranks, int to_each);

Permutation identity();
Permutation inverse(const Permutation& permutation, int ranks);
Permutation after(const Permutation& second, const Permutation& first, int ranks);

// The least of a state and its images, and what makes it of the state.
struct Canonical {
  GlobalState state;
  Permutation permutation;
};
Canonical canonical(const GlobalState& state, const std::vector<Permutation>& symmetries, int ranks, int to_each);

}  // namespace wagma::tools
