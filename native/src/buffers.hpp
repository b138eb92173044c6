// The buffers between which the machine's roles move.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "wagma/engine.hpp"

namespace wagma {

class Engine::Buffers {
 public:
  explicit Buffers(std::size_t bytes)
      : stride_((bytes + kAlignment - 1) / kAlignment * kAlignment),
        memory_(static_cast<std::byte*>(::operator new(stride_ * kBuffers, std::align_val_t(kAlignment)))) {}
  ~Buffers() { ::operator delete(memory_, std::align_val_t(kAlignment)); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  std::byte* at(int buffer) const { return memory_ + stride_ * static_cast<std::size_t>(buffer); }

 private:
  static constexpr std::size_t kAlignment = 64;  // no two buffers share a cache line
  std::size_t stride_;
  std::byte* memory_;
};

}  // namespace wagma
