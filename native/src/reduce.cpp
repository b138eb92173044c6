#include "wagma/reduce.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "reduce_kernels.hpp"

namespace wagma {
namespace {

// 1024 elements: a block of sums, or of zeros, stays in the first-level cache.
constexpr std::size_t kBlock = 1024;
alignas(64) constinit std::array<double, kBlock> zeros{};  // read only

// Roundings to nearest and denormals kept, in this thread, for as long as it lives; see reduce.hpp.
class Arithmetic {
 public:
#if defined(__x86_64__)
  Arithmetic() : before_(_mm_getcsr()) {
    if (before_ & kChanges) _mm_setcsr(before_ & ~kChanges);
  }
  ~Arithmetic() {
    if (before_ & kChanges) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned kChanges = 0x8000 | 0x6000 | 0x0040;  // flush to zero, rounding mode, denormals are zeros
  unsigned before_;
#else
  Arithmetic() {}
  ~Arithmetic() {}
#endif
  Arithmetic(const Arithmetic&) = delete;
  Arithmetic& operator=(const Arithmetic&) = delete;
};

// See Stores. Without streaming stores there is nothing to wait for.
void fence(Stores stores) {
#if defined(__x86_64__)
  if (stores == Stores::streaming) _mm_sfence();
#else
  static_cast<void>(stores);
#endif
}

// Targets by what they get: raw sums, means by one divisor (the first other than 1), or by another: `rest`.
struct Targets {
  Targets(void* const* targets, const int* divisors, int m) {
    for (int j = 0; j < m; ++j) {
      if (divisors[j] == 1) {
        raw.push_back(targets[j]);
      } else if (divided.empty() || divisors[j] == divisor) {
        divisor = divisors[j];
        divided.push_back(targets[j]);
      } else {
        rest.emplace_back(targets[j], divisors[j]);
      }
    }
  }
  Plan plan() const {
    return {raw.data(), static_cast<int>(raw.size()), divided.data(), static_cast<int>(divided.size()), divisor};
  }

  std::vector<void*> raw, divided;
  std::vector<std::pair<void*, int>> rest;
  int divisor = 1;
};

// Block by block: null sources are replaced by zeros, and further divisors are served from the block's sums.
void reduce_blocks(DType dtype, std::vector<const void*> sources, Targets targets, std::size_t count, Stores stores) {
  const auto index = static_cast<std::size_t>(dtype);
  const int n = static_cast<int>(sources.size());
  alignas(64) std::array<double, kBlock> sums;
  void* const only[] = {sums.data()};
  std::vector<bool> absent;
  for (const void*& source : sources) {
    absent.push_back(!source);
    if (!source) source = zeros.data();
  }
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t size = std::min(kBlock, count - begin);
    // The sums first: a target may be a source.
    if (!targets.rest.empty()) kernels().reduce[index](sources.data(), n, {only, 1, nullptr, 0, 1}, size, Stores::cached);
    kernels().reduce[index](sources.data(), n, targets.plan(), size, stores);
    for (auto& [target, divisor] : targets.rest) {
      kernels().merge[index](target, nullptr, sums.data(), divisor, size, stores);
      target = static_cast<std::byte*>(target) + kBlock * item_size(dtype);
    }
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (!absent[i]) sources[i] = static_cast<const std::byte*>(sources[i]) + kBlock * item_size(dtype);
    }
    for (void*& target : targets.raw) target = static_cast<std::byte*>(target) + kBlock * accumulator_size(dtype);
    for (void*& target : targets.divided) target = static_cast<std::byte*>(target) + kBlock * item_size(dtype);
  }
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  // Whoever chooses stores the same pointer to a constant, so no ordering is needed.
  const Kernels* found = chosen.load(std::memory_order_relaxed);
  if (!found) {
    found = avx2_kernels();
    if (!found) found = &kBaselineKernels;
    chosen.store(found, std::memory_order_relaxed);
  }
  return *found;
}

void use_kernels(const Kernels& kernels) { chosen.store(&kernels, std::memory_order_relaxed); }

void reduce(DType dtype, const void* const* sources, int n, void* const* targets, const int* divisors, int m, std::size_t count,
            Stores stores) {
  if (n < 1 || n > kMostSources) {
    throw std::invalid_argument("reduce of " + std::to_string(n) + " sources: must be from 1 to " + std::to_string(kMostSources));
  }
  if (m == 0 || count == 0) return;
  const Arithmetic arithmetic;
  const auto index = static_cast<std::size_t>(dtype);
  const bool zeros_among = std::find(sources, sources + n, nullptr) != sources + n;
  const bool alike = std::all_of(divisors, divisors + m, [&](int divisor) { return divisor == divisors[0]; });
  if (alike && !zeros_among) {  // the usual case, without a look at each target
    const int raws = divisors[0] == 1 ? m : 0;
    kernels().reduce[index](sources, n, {targets, raws, targets, m - raws, divisors[0]}, count, stores);
  } else {
    const Targets sorted(targets, divisors, m);
    if (zeros_among || !sorted.rest.empty()) {
      reduce_blocks(dtype, std::vector<const void*>(sources, sources + n), sorted, count, stores);
    } else {
      kernels().reduce[index](sources, n, sorted.plan(), count, stores);
    }
  }
  fence(stores);
}

void merge_into(DType dtype, void* destination, const void* own, const void* total, int own_weight, int divisor, std::size_t count,
                Stores stores) {
  if (own_weight != 0 && own_weight != 1 && (total || own_weight != divisor)) {
    throw std::invalid_argument("merge with own_weight " + std::to_string(own_weight) + ": must be 0 or 1");
  }
  if (count == 0) return;
  const std::size_t bytes = count * item_size(dtype);
  if (!total && own_weight == divisor) {
    if (destination != own) copy(destination, own, bytes, stores);
  } else if (!total && !own_weight) {
    std::memset(destination, 0, bytes);
  } else {
    const Arithmetic arithmetic;
    kernels().merge[static_cast<std::size_t>(dtype)](destination, own_weight ? own : nullptr, total, divisor, count, stores);
    fence(stores);
  }
}

void add_into(DType dtype, void* own, const void* taken, std::size_t count) {
  if (count == 0) return;
  const Arithmetic arithmetic;
  const void* const sources[] = {taken, own};
  kernels().reduce[static_cast<std::size_t>(dtype)](sources, 2, {nullptr, 0, &own, 1, 1}, count, Stores::cached);
}

void copy(void* destination, const void* source, std::size_t bytes, Stores stores) {
  if (bytes == 0) return;
  if (stores == Stores::streaming) {
    kernels().stream(destination, source, bytes);
    fence(stores);
  } else {
    std::memcpy(destination, source, bytes);
  }
}

}  // namespace wagma
