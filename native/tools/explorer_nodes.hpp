// The states found so far, each exactly once and in the order in which they were found, with the state from which each was
// reached first. Exact, no hashes instead of states: a state takes 2 bytes for each rank, a bit for each possible
// message, 4 bytes for its parent, and at most 11 in the table.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "explorer_locals.hpp"
#include "wagma/digest.hpp"

namespace wagma::tools {

class Nodes {
 public:
  enum class Added { is_new, known, no_room };

  Nodes(int ranks, int messages, std::uint64_t most, std::uint64_t most_bytes)
      : locals_(2 * static_cast<std::size_t>(ranks)),
        key_(locals_ + (static_cast<std::size_t>(messages) + 7) / 8),
        width_(key_ + sizeof(std::uint32_t)),
        most_(std::min<std::uint64_t>(most == 0 ? kMost : most, kMost)),
        most_bytes_(most_bytes),
        table_(1 << 16) {}

  std::size_t size() const { return size_; }
  std::uint64_t bytes() const { return pages_.size() * (width_ << kBits) + table_.size() * sizeof table_[0]; }

  GlobalState state(std::uint32_t index) const {
    GlobalState state;
    const unsigned char* node = at(index);
    std::memcpy(state.local.data(), node, locals_);
    std::memcpy(&state.in_flight, node + locals_, key_ - locals_);
    return state;
  }
  std::uint32_t parent(std::uint32_t index) const {
    std::uint32_t parent;
    std::memcpy(&parent, at(index) + key_, sizeof parent);
    return parent;
  }

  Added add(const GlobalState& state, std::uint32_t parent) {
    unsigned char packed[sizeof(GlobalState)];
    std::memcpy(packed, state.local.data(), locals_);
    std::memcpy(packed + locals_, &state.in_flight, key_ - locals_);
    const std::size_t mask = table_.size() - 1;
    std::size_t slot = hash_of(packed) & mask;
    for (; table_[slot]; slot = (slot + 1) & mask) {
      if (std::memcmp(at(table_[slot] - 1), packed, key_) == 0) return Added::known;
    }
    if (size_ == most_ || !has_room()) return Added::no_room;
    if ((size_ & kMask) == 0) pages_.push_back(std::make_unique<unsigned char[]>(width_ << kBits));
    unsigned char* node = at(size_++);
    std::memcpy(node, packed, key_);
    std::memcpy(node + key_, &parent, sizeof parent);
    table_[slot] = static_cast<std::uint32_t>(size_);
    if (is_full()) grow();
    return Added::is_new;
  }

 private:
  static constexpr int kBits = 16;
  static constexpr std::size_t kMask = (1u << kBits) - 1;
  static constexpr std::uint64_t kMost = std::numeric_limits<std::uint32_t>::max() - 1;

  unsigned char* at(std::size_t index) const { return pages_[index >> kBits].get() + (index & kMask) * width_; }
  std::uint64_t hash_of(const unsigned char* key) const { return digest(key, key_); }
  bool is_full() const { return (size_ + 1) * 4 > table_.size() * 3; }
  // Whether the next page and, if it is time, the table twice as large are within the limit.
  bool has_room() const {
    const std::uint64_t page = (size_ & kMask) == 0 ? width_ << kBits : 0;
    const std::uint64_t table = (size_ + 2) * 4 > table_.size() * 3 ? table_.size() * sizeof table_[0] : 0;
    return bytes() + page + table <= most_bytes_;
  }
  void grow() {
    const std::size_t size = table_.size() * 2;
    table_ = {};  // free the old one first; everything it knew is in the nodes
    table_.resize(size);
    for (std::size_t i = 0; i < size_; ++i) {
      std::size_t slot = hash_of(at(i)) & (size - 1);
      while (table_[slot]) slot = (slot + 1) & (size - 1);
      table_[slot] = static_cast<std::uint32_t>(i + 1);
    }
  }

  std::size_t locals_, key_, width_;
  std::uint64_t most_, most_bytes_;
  // Pages, which never move: growing by doubling would need three times the memory at its peak.
  std::vector<std::unique_ptr<unsigned char[]>> pages_;
  std::size_t size_ = 0;
  std::vector<std::uint32_t> table_;  // open addressing: index of a node + 1, or 0
};

}  // namespace wagma::tools
