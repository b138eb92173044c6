// A piece of memory that the ranks of one node map: anonymous for the threads of a process, a memfd for processes.
//
// memfd and not /dev/shm: containers often give the latter 64 MB, and what lies there outlives a job that was killed. A memfd is gone
// with the last process that maps it.
#pragma once

#include <cstddef>
#include <memory>

namespace wagma {

class Segment {
 public:
  // Zeros, for this process alone.
  static std::shared_ptr<Segment> in_process(std::size_t bytes);
  // Zeros, which other processes can open by this process's id and `descriptor()`.
  static std::shared_ptr<Segment> create(std::size_t bytes);
  // That of another process of the same user. `identity` is its creator's: an id that has been given to another process since, or
  // that means another one here (containers), opens something else or nothing.
  static std::shared_ptr<Segment> open(long process, int descriptor, std::size_t bytes, unsigned long long identity);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  int descriptor() const { return descriptor_; }
  unsigned long long identity() const;  // of the file behind it
  // Has the kernel find the memory of this range now. Without it a machine that has too little kills a rank at its first touch (SIGBUS).
  // The pages come from the memory next to the core that asks, so each rank reserves its own.
  void reserve(std::size_t offset, std::size_t bytes) const;

 private:
  Segment(int descriptor, std::size_t bytes);

  const int descriptor_;  // -1: anonymous
  const std::size_t bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace wagma
