// Holds a reduced search against the search of all states: what the arguments beside the reductions promise is compared.
#pragma once

#include <string>

#include "explorer.hpp"

namespace wagma::tools {

struct Comparison {
  ExploreResult all, reduced;
  std::size_t quiet = 0, reduced_quiet = 0;  // quiet states, of those that differ by a symmetry one
  std::size_t edges = 0, reduced_edges = 0;  // of ranks, up to the names of buffers
  std::string difference;                    // empty: none; else the first one
};

// `all` says which search is the reference: with or without `exact`, never reduced by symmetry or order.
Comparison compare(const Case& config, const ExploreOptions& reduced, const ExploreOptions& all);

}  // namespace wagma::tools
