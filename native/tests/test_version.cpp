// The kernel carries a version of the form MAJOR.MINOR.PATCH.
#include <cstdio>

#include "wagma/version.hpp"

int main() {
  int major = -1, minor = -1, patch = -1;
  char rest = '\0';
  const int fields = std::sscanf(wagma::version(), "%d.%d.%d%c", &major, &minor, &patch, &rest);
  if (fields != 3) {
    std::fprintf(stderr, "version '%s' is not MAJOR.MINOR.PATCH\n", wagma::version());
    return 1;
  }
  return 0;
}
