// As many cores as a test wants: what the kernel does depends on whether ranks outnumber them (they need not be there). For one source
// file of a program, as it takes the place of the library's function.
#pragma once

#include <sched.h>
#include <unistd.h>

namespace wagma::testing {

inline int pretended_cores = 0;  // 0: those that there are

}  // namespace wagma::testing

extern "C" int sched_getaffinity(pid_t, std::size_t bytes, cpu_set_t* cores) noexcept {
  const int number = wagma::testing::pretended_cores ? wagma::testing::pretended_cores : static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  CPU_ZERO_S(bytes, cores);
  for (int core = 0; core < number; ++core) CPU_SET_S(static_cast<std::size_t>(core), bytes, cores);
  return 0;
}
