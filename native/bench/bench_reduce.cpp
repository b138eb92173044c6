// How fast reduce(), merge_into() and copy() are beside this machine's best copy, measured in the same run: GB/s of bytes read and
// written by all threads together, median [quartiles] of the repeats, and the median's share of the best copy's.
//
//   bench_reduce [--threads N] [--repeats N] [--elements N] [--memory-mib N] [--dtype NAME]
//
// Bytes are what the operation has to move: a store that first reads the line it overwrites is slower, it does not count double.
#include <cstdlib>
#include <cstring>

#include "../src/reduce_kernels.hpp"
#include "timing.hpp"

namespace {

using namespace wagma;
using namespace wagma::timing;

struct Settings {
  long long threads = std::max(1u, std::thread::hardware_concurrency());
  long long repeats = 15;
  long long elements = 25'560'000;  // of the large model; the small one has 1 Mi
  long long memory_mib = 2048;
  std::string dtype;  // empty: all
};

// Memory that all measurements share, touched by whoever works on it; arrays begin at cache lines, not all at the same place of a page.
class Pool {
 public:
  explicit Pool(std::size_t bytes) : bytes_(bytes), memory_(static_cast<std::byte*>(std::aligned_alloc(4096, bytes))) {
    if (!memory_) throw std::runtime_error("no memory for " + std::to_string(bytes >> 20) + " MiB: lower --memory-mib");
    std::memset(memory_, 0, bytes);
  }
  ~Pool() { std::free(memory_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::vector<void*> arrays(int count, std::size_t bytes) {
    const std::size_t stride = (bytes + 4095) / 4096 * 4096 + 64 * 5;
    if (stride * static_cast<std::size_t>(count) > bytes_) throw std::runtime_error("arrays beyond --memory-mib");
    std::vector<void*> result;
    for (int i = 0; i < count; ++i) result.push_back(memory_ + stride * static_cast<std::size_t>(i));
    return result;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* memory_;
};

// work(begin, end): elements of one thread. A repeat lasts from when all threads are ready to when all are done, as seen by the last
// one to come to the gate: any other may be let go late, on a busy machine after the others' work.
Spread measure(const Settings& options, std::size_t count, double bytes, const std::function<void(std::size_t, std::size_t)>& work) {
  const auto threads = static_cast<std::size_t>(options.threads);
  const std::size_t inner = std::max<std::size_t>(1, static_cast<std::size_t>(5e7 / bytes));  // a repeat takes about a millisecond or more
  std::vector<std::chrono::steady_clock::time_point> passed;
  passed.reserve(2 * static_cast<std::size_t>(options.repeats) + 2);
  const auto note = [&]() noexcept { passed.push_back(std::chrono::steady_clock::now()); };
  std::barrier gate(options.threads, note);
  const auto run = [&](std::size_t index) {
    const std::size_t step = (count / threads + 63) / 64 * 64;
    const std::size_t begin = std::min(count, index * step), end = index + 1 == threads ? count : std::min(count, begin + step);
    for (int repeat = -1; repeat < options.repeats; ++repeat) {  // the first is warm-up
      gate.arrive_and_wait();
      for (std::size_t i = 0; i < inner; ++i) work(begin, end);
      gate.arrive_and_wait();
    }
  };
  std::vector<std::jthread> others;
  for (std::size_t i = 1; i < threads; ++i) others.emplace_back(run, i);
  run(0);
  others.clear();
  std::vector<double> rates;
  for (std::size_t i = 2; i < passed.size(); i += 2) {
    const std::chrono::duration<double> took = passed[i + 1] - passed[i];
    rates.push_back(bytes * static_cast<double>(inner) / took.count() / 1e9);
  }
  return spread_of(std::move(rates));
}

void print(const std::string& what, std::size_t count, Stores stores, Spread spread, double best_copy) {
  std::printf("%-34s %10zu  %-9s %7.1f [%6.1f, %6.1f]  %5.2f\n", what.c_str(), count,
              stores == Stores::streaming ? "streaming" : "cached", spread.median, spread.lower, spread.upper,
              spread.median / best_copy);
  std::fflush(stdout);
}

void* shifted(void* array, std::size_t bytes) { return static_cast<std::byte*>(array) + bytes; }

double bench_copy(const Settings& options, Pool& pool, std::size_t bytes) {
  const auto arrays = pool.arrays(2, bytes);
  Spread spreads[2];
  for (const Stores stores : {Stores::cached, Stores::streaming}) {
    spreads[stores == Stores::streaming] = measure(options, bytes, 2.0 * static_cast<double>(bytes), [&](std::size_t begin, std::size_t end) {
      copy(shifted(arrays[0], begin), shifted(arrays[1], begin), end - begin, stores);
    });
  }
  const double best = std::max(spreads[0].median, spreads[1].median);
  print("copy (bytes)", bytes, Stores::cached, spreads[0], best);
  print("copy (bytes)", bytes, Stores::streaming, spreads[1], best);
  return best;
}

// n sources into m targets: all means, or all raw sums.
void bench_reduce(const Settings& options, Pool& pool, DType dtype, int n, int m, int divisor, std::size_t count, double best) {
  const std::size_t item = item_size(dtype), written = divisor == 1 ? accumulator_size(dtype) : item;
  count = std::min(count, pool.bytes() / (static_cast<std::size_t>(n + m) * std::max(item, written)) - 4096);
  const auto arrays = pool.arrays(n + m, count * std::max(item, written));
  const std::vector<int> divisors(static_cast<std::size_t>(m), divisor);
  const double bytes = static_cast<double>(count) * static_cast<double>(static_cast<std::size_t>(n) * item + static_cast<std::size_t>(m) * written);
  for (const Stores stores : {Stores::cached, Stores::streaming}) {
    const auto spread = measure(options, count, bytes, [&](std::size_t begin, std::size_t end) {
      std::vector<void*> at;
      for (int i = 0; i < n + m; ++i) at.push_back(shifted(arrays[static_cast<std::size_t>(i)], begin * (i < n ? item : written)));
      reduce(dtype, at.data(), n, at.data() + n, divisors.data(), m, end - begin, stores);
    });
    const std::string kind = divisor == 1 ? " raw" : " means";
    print("reduce " + std::string(dtype_name(dtype)) + " " + std::to_string(n) + " -> " + std::to_string(m) + kind, count, stores, spread, best);
  }
}

void bench_merge(const Settings& options, Pool& pool, DType dtype, std::size_t count, double best) {
  const std::size_t item = item_size(dtype), sum = accumulator_size(dtype);
  const auto arrays = pool.arrays(3, count * sum);
  const double bytes = static_cast<double>(count * (2 * item + sum));
  for (const Stores stores : {Stores::cached, Stores::streaming}) {
    const auto spread = measure(options, count, bytes, [&](std::size_t begin, std::size_t end) {
      merge_into(dtype, shifted(arrays[0], begin * item), shifted(arrays[1], begin * item), shifted(arrays[2], begin * sum), 1, 5,
                 end - begin, stores);
    });
    print("merge_into " + std::string(dtype_name(dtype)), count, stores, spread, best);
  }
}

void bench(const Settings& options) {
  Pool pool(static_cast<std::size_t>(options.memory_mib) << 20);
  std::printf("threads %lld, loops %s, GB/s median [quartiles], share of the best copy of as many bytes\n", options.threads, kernels().name);
  for (const std::size_t count : {std::size_t{1} << 20, static_cast<std::size_t>(options.elements)}) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
      if (!options.dtype.empty() && options.dtype != dtype_name(dtype)) continue;
      const double best = bench_copy(options, pool, count * item_size(dtype));
      bench_merge(options, pool, dtype, count, best);
      for (const int n : {2, 4, 8, 16, 32}) {
        bench_reduce(options, pool, dtype, n, n, n, count, best);
        bench_reduce(options, pool, dtype, n, n, 1, count, best);
      }
      bench_reduce(options, pool, dtype, 4, 1, 1, count, best);
    }
  }
}

}  // namespace

int main(int count, char** words) {
  Settings settings;
  return run_bench("bench_reduce", [&] {
    read_options(count, words, {{"--threads", &settings.threads}, {"--repeats", &settings.repeats}, {"--elements", &settings.elements},
                                {"--memory-mib", &settings.memory_mib}, {"--dtype", &settings.dtype}});
    bench(settings);
  });
}
