// What the MPI library says of memory on CUDA devices.
#include <mpi.h>

#include "wagma/transport_mpi.hpp"

// Open MPI declares it in <mpi-ext.h>, if that extension was built, MPICH in <mpi.h>, from 4.0 on, and their relatives here or there. Weak, and
// so asked for when the module is loaded rather than when it is built: a library without it loads all the same. Both count what was switched
// off for a run: MPICH by MPIR_CVAR_ENABLE_GPU=0, Open MPI from 5.0 on by the accelerator component that it has chosen.
extern "C" __attribute__((weak)) int MPIX_Query_cuda_support(void);

namespace wagma {

bool cuda_support() { return MPIX_Query_cuda_support != nullptr && MPIX_Query_cuda_support() != 0; }

}  // namespace wagma
