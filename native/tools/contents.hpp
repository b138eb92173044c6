// What a rank's buffers hold, as tags: the initial model; the model published for version v, or the gradients of versions u to
// v; the result of version v; the last model of a rank that closes; something that the application is writing; a sum that is
// being reduced for version v. So a torn or stale read shows as a wrong tag.
#pragma once

#include <algorithm>
#include <array>

#include "case.hpp"

namespace wagma::tools {

using Tag = Version;
inline constexpr Tag kNothing = -2, kJunk = -1, kInitial = 0, kDirty = 1, kLastModel = 2;
inline constexpr Version kSpan = 1 << 20;  // more versions than any case has
inline Tag own(Version version) { return 3 * version + 3; }
inline Tag reducing(Version version) { return 3 * version + 4; }
inline Tag result(Version version) { return 3 * version + 5; }
inline Tag gradients(Version oldest, Version newest) { return 3 * (kSpan * (oldest + 1) + newest) + 3; }

class Contents {
 public:
  Contents(int buffers, bool single) : buffers_(buffers), single_(single) { tags_.fill(kJunk); }

  Tag& operator[](int buffer) { return tags_[at(buffer)]; }
  Tag operator[](int buffer) const { return tags_[at(buffer)]; }
  bool same(int one, int other) const { return at(one) == at(other); }
  const std::array<Tag, kBuffers>& tags() const { return tags_; }

  // A buffer without a role may hold anything: forgetting its content keeps states equal that nothing can tell apart.
  template <class Roles>
  void keep(const Roles& roles) {
    for (int buffer = 0; buffer < buffers_; ++buffer) {
      const bool used = std::any_of(roles.begin(), roles.end(), [&](int role) { return role != -1 && same(role, buffer); });
      if (!used) tags_[at(buffer)] = kJunk;
    }
  }

 private:
  std::size_t at(int buffer) const {
    if (single_) return 0;
    if (buffer < 0 || buffer >= buffers_) throw Violation("wholeness: no such buffer");
    return static_cast<std::size_t>(buffer);
  }

  int buffers_;
  bool single_;
  std::array<Tag, kBuffers> tags_;
};

}  // namespace wagma::tools
