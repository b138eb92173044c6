#pragma once

namespace wagma {

/// The version of the kernel, which is the version of the Python package.
const char *version() noexcept;

}  // namespace wagma
