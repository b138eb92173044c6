// Wholeness: ranks publish models of one repeated number as fast as they can, and write the live one all the time; every
// sum and every result must be uniform, or a model was read while it was written. The same program compiled with
// WAGMA_TEST_SINGLE_BUFFER (one buffer for all roles) has to find torn models: native/CMakeLists.txt holds it to that.
#include <algorithm>
#include <atomic>

#include "ranks.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

bool uniform(const std::vector<double>& model) {
  return std::all_of(model.begin(), model.end(), [&](double x) { return x == model.front(); });
}

// Ranks of different speed, so that many contributions are read while their owner publishes the next one.
std::size_t torn_models(int world_size, int group_size, Version sync_period, std::size_t count, Version iterations) {
  auto config = config_of(world_size, group_size, sync_period, count);
  config.record = config.digests = false;
  std::atomic<std::size_t> torn{0};  // a count that is read after all threads were joined: relaxed order is enough
  const auto errors = run_ranks(config, [](int rank) { return static_cast<double>(rank); }, [&](int rank, Engine& engine) {
    std::vector<double> model(count);
    for (Version t = 0; t < iterations; ++t) {
      std::fill(model.begin(), model.end(), static_cast<double>(t * 64 + rank));
      if (draw(11, rank, t) % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw(12, rank, t) % 300));
      const Outcome outcome = engine.arrive(t, model.data());
      if (outcome.group_length > 0) engine.copy_result(model.data());
      if (!uniform(model)) torn.fetch_add(1, std::memory_order_relaxed);
    }
    engine.close();
  });
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
  return torn.load(std::memory_order_relaxed);
}

}  // namespace

int main() {
  return run_tests({{"groups without syncs", [] { WAGMA_CHECK(torn_models(4, 2, 0, 20000, 300) == 0); }},
                    {"groups and syncs", [] { WAGMA_CHECK(torn_models(4, 2, 5, 20000, 300) == 0); }},
                    {"odd sizes", [] { WAGMA_CHECK(torn_models(3, 2, 7, 9999, 300) == 0); }}});
}
