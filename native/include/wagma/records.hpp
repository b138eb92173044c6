// What an engine notes for the trace (wagma/trace.py has the schema). Times are nanoseconds of one steady clock; digests are
// zero where they are switched off; `sequence` counts a rank's records of both kinds in causal order.
#pragma once

#include <cstdint>
#include <vector>

#include "wagma/schedule.hpp"

namespace wagma {

struct ExecutionRecord {
  std::int64_t sequence = 0;  // taken when the execution completed
  Version version = 0;
  Group members;
  bool activator = false;         // this rank's own arrival activated the version here
  std::int64_t activated_ns = 0;  // when this rank first knew the version, or a later one, to be activated
  std::int64_t started_ns = 0;
  std::int64_t completed_ns = 0;
  std::int64_t read_ns = 0;  // when no peer read the buffers any more: the next version may start
  Version own_stamp = 0;
  std::uint64_t contribution_digest = 0;
  std::uint64_t sum_digest = 0;  // at a sync: of the mean
};

struct IterationRecord {
  std::int64_t sequence = 0;  // taken when the application returned
  Version iteration = 0;
  std::int64_t arrival_ns = 0;
  std::int64_t return_ns = 0;
  bool fresh = false;
  Version merged_version = -1;  // -1: nothing to merge
  std::uint64_t published_digest = 0;
  std::uint64_t merged_digest = 0;  // of the sum, at a sync of the mean
  std::uint64_t model_digest = 0;   // of the application's array after merging
};

struct Records {
  std::vector<ExecutionRecord> executions;  // noted when released, so an execution may be missing until the next call
  std::vector<IterationRecord> iterations;
};

}  // namespace wagma
