#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace wagma::check {

// A set of the hashes of states. Open addressing; 0 stands for an empty place.
class Seen {
 public:
  bool insert(std::uint64_t key) {
    if (key == 0) key = 1;
    if (2 * (size_ + 1) > places_.size()) grow();
    for (std::size_t i = key & (places_.size() - 1);; i = (i + 1) & (places_.size() - 1)) {
      if (places_[i] == key) return false;
      if (places_[i] != 0) continue;
      places_[i] = key;
      ++size_;
      return true;
    }
  }
  std::uint64_t size() const { return size_; }

 private:
  void grow() {
    const std::vector<std::uint64_t> old = std::exchange(places_, std::vector<std::uint64_t>(std::max<std::size_t>(1024, 2 * places_.size())));
    size_ = 0;
    for (const std::uint64_t key : old) {
      if (key) insert(key);
    }
  }
  std::vector<std::uint64_t> places_;
  std::uint64_t size_ = 0;
};

}  // namespace wagma::check
