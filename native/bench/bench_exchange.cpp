// One version over shared memory without an engine: ranks as threads begin it, reduce it and see it complete, version after version;
// beside it as many threads that copy as many bytes (each member's model read once and its mean written once).
//
//   bench_exchange [--threads N] [--repeats N] [--elements N]        elements: of the largest model
#include <numeric>

#include "timing.hpp"
#include "wagma/transport_node.hpp"

namespace {

using namespace wagma;
using namespace wagma::timing;

constexpr std::size_t kSizes[] = {1'000, 10'000, 100'000, 1'000'000, 5'000'000, 25'560'000};

// Seconds of one version, from complete to complete as the first rank sees it.
void execute(Transport& transport, std::size_t count, long long versions, bool has_core, std::vector<double>* samples) {
  Execution execution;
  execution.members.resize(static_cast<std::size_t>(transport.world_size()));
  std::iota(execution.members.begin(), execution.members.end(), 0);
  execution.index = transport.rank();
  execution.contribution = transport.buffer(0);
  execution.target = transport.buffer(1);
  execution.count = count;
  execution.divisor = transport.world_size();
  double before = seconds();
  for (execution.version = 0; execution.version < versions; ++execution.version) {
    transport.begin(execution);
    while (!transport.progress().released) {
      if (has_core) {
        transport.pause({});
      } else {
        std::this_thread::yield();
      }
    }
    const double now = seconds();
    if (samples) samples->push_back(now - before);
    before = now;
  }
}

void bench(int threads, long long repeats, std::size_t largest) {
  const bool has_core = threads <= static_cast<int>(std::thread::hardware_concurrency());
  for (const std::size_t count : kSizes) {
    if (count > largest) continue;
    const std::size_t bytes = count * item_size(DType::float32);
    const long long versions = std::clamp<long long>(static_cast<long long>(4e8 / static_cast<double>(bytes)), repeats, 100 * repeats);
    const auto node = Node::in_process({threads, 2, bytes});
    std::vector<double> samples;
    {
      std::vector<std::jthread> ranks;
      for (int rank = 0; rank < threads; ++rank) {
        ranks.emplace_back([&, rank] {
          NodeTransport transport(node, rank);
          std::fill_n(reinterpret_cast<float*>(transport.buffer(0)), count, 1.0f + static_cast<float>(rank));
          execute(transport, count, versions, has_core, rank == 0 ? &samples : nullptr);
        });
      }
    }
    samples.erase(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 5));  // first touch of the targets
    const float mean = *reinterpret_cast<const float*>(node->buffer(0, 1));
    if (mean != static_cast<float>(1 + threads) / 2) throw std::runtime_error("the mean is " + std::to_string(mean));
    const Spread copies = time_copies(threads, bytes, std::min<long long>(versions, 10 * repeats));
    const std::string what = std::to_string(count) + " float32, " + std::to_string(threads) + " threads";
    print_line(what, spread_of(std::move(samples)), 1e-6, "us", "copies", copies);
  }
}

}  // namespace

int main(int count, char** words) {
  long long threads = 2, repeats = 20, elements = 25'560'000;
  return run_bench("bench_exchange", [&] {
    read_options(count, words, {{"--threads", &threads}, {"--repeats", &repeats}, {"--elements", &elements}});
    bench(static_cast<int>(threads), repeats, static_cast<std::size_t>(elements));
  });
}
