#include "arena.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace wagma::check {

Arena arena;

void* Arena::take(std::size_t bytes, std::size_t alignment) {
  used = (used + alignment - 1) / alignment * alignment;
  if (used + bytes > kBytes) std::abort();
  void* place = base + used;
  used += bytes;
  return place;
}

std::byte* mapped(std::size_t bytes) {
  void* place = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(place);
}

}  // namespace wagma::check

namespace {

using wagma::check::arena;

void* allocate(std::size_t bytes, std::size_t alignment) {
  void* place = arena.on ? arena.take(bytes, alignment) : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!place) std::abort();
  return place;
}

void release(void* place) {
  if (!arena.holds(place)) std::free(place);
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return allocate(bytes, static_cast<std::size_t>(alignment)); }
void operator delete(void* place) noexcept { release(place); }
void operator delete(void* place, std::size_t) noexcept { release(place); }
void operator delete(void* place, std::align_val_t) noexcept { release(place); }
void operator delete(void* place, std::size_t, std::align_val_t) noexcept { release(place); }
