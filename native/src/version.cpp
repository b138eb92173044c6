#include "wagma/version.hpp"

namespace wagma {

const char *version() noexcept { return WAGMA_VERSION; }

}  // namespace wagma
