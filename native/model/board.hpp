// What the checker puts in place of data: each chunk of each buffer is one word, which the model's publishing, reducing and merging
// read and write in steps of their own. A chunk read half an execution too early or too late is a wrong word.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "wagma/node.hpp"

namespace wagma::check {

inline constexpr int kChunks = 6;                        // of a buffer, at most
inline constexpr std::size_t kChunkElements = 32 * 1024;  // of float32: transport_node.cpp takes 128 KiB at once

// Whether ranks outnumber the cores decides what the kernel does: the next run's ranks may run on so many.
void pretend_cores(int cores);

// What an application's array holds for the functions on data: a word where each chunk begins.
inline constexpr std::size_t kApart = kChunkElements * sizeof(float) / sizeof(std::uint64_t);
inline std::size_t array_words(int chunks) { return (chunks - 1) * kApart + 8; }

// Chunks averaged straight into an application's array, over all runs: a scenario that never goes that way checks nothing of it.
extern std::uint64_t averaged_directly;

inline std::size_t elements(int chunks) { return (chunks - 1) * kChunkElements + 8; }

// Where the buffers of all ranks begin, and how much of one a chunk is.
struct Layout {
  int ranks, buffers;
  std::function<std::byte*(int rank, int buffer)> at;
  std::size_t chunk_bytes = kChunkElements * sizeof(float);

  static Layout of(std::shared_ptr<Node> node) {
    return {node->plan().world_size, node->plan().buffers, [node](int rank, int buffer) { return node->buffer(rank, buffer); }};
  }
};

class Board {
 public:
  // One at a time, which the kernel's functions on data (model/data.cpp) use.
  Board(const Layout& layout, bool roles_known);
  static Board& present();

  // Where the roles of buffers are known (the model of the transport alone): until `leave`, contribution and target of the rank.
  void enter(int rank, Version version, int contribution, int target);
  void leave(int rank, int chunks, bool through_target = true);
  Version entered(int rank) const { return entered_[rank]; }

  void publish(const std::byte* at, int chunks, std::uint64_t content);
  // Of all chunks, which have to hold the same.
  std::uint64_t read(const std::byte* at, int chunks);
  void reduce(const void* const* sources, int n, void* const* targets, int m);
  static std::uint64_t added(std::uint64_t sum, std::uint64_t content) { return (sum ^ content) * 0x100000001B3u + content % 1009; }
  bool holds(const void* at) const { return find(at).has_value(); }
  int chunks_of(std::size_t bytes) const { return static_cast<int>((bytes + layout_.chunk_bytes - 1) / layout_.chunk_bytes); }

 private:
  struct Place {
    int rank, buffer, chunk;
  };
  std::optional<Place> find(const void* at) const;
  Place place(const void* at) const;
  Atomic<std::uint64_t>& word(const Place& place) { return words_[(place.rank * layout_.buffers + place.buffer) * kChunks + place.chunk]; }
  void show(int rank);

  const Layout layout_;
  std::unique_ptr<Atomic<std::uint64_t>[]> words_;
  const bool roles_known_;
  std::vector<Version> entered_;  // kNone: not in a version
  std::vector<int> contribution_, target_, written_;
};

}  // namespace wagma::check
