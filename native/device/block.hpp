// How a kernel is written here: as an object whose call does the work of one block of threads, in phases.
//
//     struct Fill {
//       float* to; std::size_t count; float value;
//       WAGMA_DEVICE void operator()(const Block& block) const {
//         block.each([&](unsigned thread) { for (auto i = block.first(thread); i < count; i += block.stride()) to[i] = value; });
//       }
//     };
//     launch(Fill{...}, blocks, stream);   // runtime.hpp
//
// On a GPU each() runs its function once in every thread of the block, and the block is real. On the emulated device it is a loop over
// the threads, so that what stands between two calls of each() is what a __syncthreads() would be: nothing before it is unfinished.
#pragma once

#include <cstddef>

// WAGMA_RUNTIME: the namespace of all that is compiled once for each runtime. WAGMA_UNROLL, WAGMA_ROLLED: before a loop whose variables
// have to be registers, or whose body is rarely run. WAGMA_UNSET: behind a variable that is set wherever it is used, though the host's
// compiler cannot know that; to set it costs a GPU instructions.
#if defined(__CUDACC__)
#define WAGMA_RUNTIME cuda
#define WAGMA_DEVICE __device__ __forceinline__
#define WAGMA_HOST_DEVICE __host__ __device__ __forceinline__
#define WAGMA_UNROLL _Pragma("unroll")
#define WAGMA_ROLLED _Pragma("unroll 1")
#define WAGMA_UNSET
#else
#define WAGMA_RUNTIME emulated
#define WAGMA_DEVICE inline
#define WAGMA_HOST_DEVICE inline
#define WAGMA_UNROLL
#define WAGMA_ROLLED
#define WAGMA_UNSET {}
#endif

namespace wagma {

constexpr unsigned kThreads = 256;  // of a block

class Block {
 public:
#if defined(__CUDACC__)
  WAGMA_DEVICE unsigned number() const { return blockIdx.x; }
  WAGMA_DEVICE unsigned blocks() const { return gridDim.x; }
  template <class Function>
  WAGMA_DEVICE void each(Function function) const {
    function(threadIdx.x);
    __syncthreads();
  }
  // Runs `function` once, after all blocks have come here, in whichever comes last; it sees all that they have written. `ticket`: zero
  // before the kernel, and zero again after it.
  template <class Function>
  WAGMA_DEVICE void last(unsigned* ticket, Function function) const {
    if (threadIdx.x != 0) return;  // each() has synchronised the block
    __threadfence();
    if (atomicAdd(ticket, 1u) != gridDim.x - 1) return;
    __threadfence();
    *ticket = 0;
    function();
  }
#else
  Block(unsigned number, unsigned blocks) : number_(number), blocks_(blocks) {}
  unsigned number() const { return number_; }
  unsigned blocks() const { return blocks_; }
  template <class Function>
  WAGMA_DEVICE void each(Function function) const {
    for (unsigned thread = 0; thread < kThreads; ++thread) function(thread);
  }
  template <class Function>
  WAGMA_DEVICE void last(unsigned* ticket, Function function) const {
    if (++*ticket != blocks_) return;  // one thread runs all blocks of a kernel
    *ticket = 0;
    function();
  }

 private:
  const unsigned number_, blocks_;

 public:
#endif
  // A loop over the whole grid: `for (i = first(thread); i < count; i += stride())`.
  WAGMA_DEVICE std::size_t first(unsigned thread) const { return static_cast<std::size_t>(number()) * kThreads + thread; }
  WAGMA_DEVICE std::size_t stride() const { return static_cast<std::size_t>(blocks()) * kThreads; }
};

}  // namespace wagma
