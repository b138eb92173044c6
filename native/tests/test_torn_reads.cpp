// Wholeness: ranks publish models of one repeated number as fast as they can, and write the live one all the time; every
// sum and every result must be uniform, or a model was read while it was written. The same program compiled with
// WAGMA_TEST_SINGLE_BUFFER (one buffer for all roles) has to find torn models: native/CMakeLists.txt holds it to that.
//
//   test_torn_reads [SECONDS]      so long, shared by the cases, instead of a moment; prints what was published, as JSON
#include <algorithm>
#include <atomic>
#include <cstring>

#include "pretended_cores.hpp"
#include "processes.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

struct Hunt {
  int world_size, group_size;
  Version sync_period;
  std::size_t count;
  DType dtype = DType::float64;
  bool resident = false;
  bool processes = false;
  bool averages = false;  // by Engine::average, as if each rank had a core: straight into the model, where all have arrived
};

struct Catch {
  std::int64_t published = 0, torn = 0;
};

// Bits of a small whole number: exact in every type, and so are sums of some of them where it matters (it does not: equal elements have
// equal sums).
std::uint64_t pattern(DType dtype, std::uint64_t number) {
  if (dtype == DType::float64) {
    const double value = static_cast<double>(number);
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  if (dtype == DType::float16) return 0x3C00 + number % 1024;  // from 1 to 2
  const float value = static_cast<float>(dtype == DType::bfloat16 ? number % 128 : number % 100000);
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return dtype == DType::bfloat16 ? bits >> 16 : bits;
}

void fill(std::byte* model, const Hunt& hunt, std::uint64_t number) {
  const std::uint64_t bits = pattern(hunt.dtype, number);
  const std::size_t item = item_size(hunt.dtype);
  for (std::size_t i = 0; i < hunt.count; ++i) std::memcpy(model + i * item, &bits, item);
}

bool uniform(const std::byte* model, const Hunt& hunt) {
  const std::size_t item = item_size(hunt.dtype);
  return std::memcmp(model, model + item, (hunt.count - 1) * item) == 0;
}

// Ranks of different speed, so that many contributions are read while their owner publishes the next one.
Catch hunt_with(const Hunt& hunt, int rank, Engine& engine, Version iterations, Clock::time_point until) {
  Catch found;
  std::vector<std::byte> memory(hunt.count * item_size(hunt.dtype));
  for (Version t = 0; iterations ? t < iterations : Clock::now() < until; ++t) {
    auto* model = hunt.resident ? static_cast<std::byte*>(engine.live()) : memory.data();
    fill(model, hunt, static_cast<std::uint64_t>(t * 64 + rank));
    if (draw(11, rank, t) % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw(12, rank, t) % 300));
    if (hunt.averages) {
      engine.average(t, model);
    } else if (engine.arrive(t, hunt.resident ? nullptr : model).group_length > 0) {
      engine.copy_result(hunt.resident ? nullptr : model);
    }
    ++found.published;
    found.torn += !uniform(hunt.resident ? static_cast<std::byte*>(engine.live()) : model, hunt);
  }
  engine.close();
  return found;
}

// With `iterations` == 0 until `until`, when each rank ends by itself.
Catch torn_models_of(const Hunt& hunt, Version iterations, Clock::time_point until = {}) {
  auto config = config_of(hunt.world_size, hunt.group_size, hunt.sync_period, hunt.count);
  config.dtype = hunt.dtype;
  config.resident = hunt.resident;
  config.mean_when_fresh = hunt.averages;
  pretended_cores = hunt.averages ? hunt.world_size : 0;
  config.record = config.digests = false;
  Catch total;
  if (hunt.processes) {
    Processes::run_ranks(
        config,
        [&](int rank, Engine& engine, Told& told) {
          const Catch found = hunt_with(hunt, rank, engine, iterations, until);
          told.numbers[0] = found.published;
          told.numbers[1] = found.torn;
        },
        [&](Processes& processes) {
          for (int rank = 0; rank < hunt.world_size; ++rank) {
            total.published += processes.told(rank).numbers[0];
            total.torn += processes.told(rank).numbers[1];
          }
        });
    return total;
  }
  std::vector<Catch> found(hunt.world_size);
  const auto errors = run_ranks(config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
    found[rank] = hunt_with(hunt, rank, engine, iterations, until);
  });
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
  for (const Catch& own : found) total = {total.published + own.published, total.torn + own.torn};
  return total;
}

std::int64_t torn_models(const Hunt& hunt, Version iterations) { return torn_models_of(hunt, iterations).torn; }

const std::vector<Hunt>& hunts() {
  static const std::vector<Hunt> all{
      // Processes first: no other thread has run yet when they are forked.
      {.world_size = 4, .group_size = 2, .sync_period = 0, .count = 5000, .processes = true},
      {.world_size = 3, .group_size = 2, .sync_period = 7, .count = 3001, .dtype = DType::float32, .resident = true, .processes = true},
      {.world_size = 4, .group_size = 4, .sync_period = 0, .count = 9999, .dtype = DType::bfloat16, .processes = true},
      {.world_size = 2, .group_size = 2, .sync_period = 4, .count = 40000, .dtype = DType::float64, .processes = true, .averages = true},
      {.world_size = 2, .group_size = 2, .sync_period = 0, .count = 150000, .dtype = DType::float32, .averages = true},
      {.world_size = 3, .group_size = 2, .sync_period = 3, .count = 70000, .dtype = DType::bfloat16, .averages = true},
      {.world_size = 4, .group_size = 4, .sync_period = 2, .count = 3000, .dtype = DType::float16, .averages = true},
      {.world_size = 4, .group_size = 2, .sync_period = 5, .count = 5000, .dtype = DType::float32, .resident = true},
      {.world_size = 3, .group_size = 3, .sync_period = 0, .count = 7777, .dtype = DType::float16},
      {.world_size = 4, .group_size = 2, .sync_period = 0, .count = 70000, .dtype = DType::bfloat16, .resident = true},
      {.world_size = 8, .group_size = 4, .sync_period = 6, .count = 1000, .dtype = DType::float32},
  };
  return all;
}

int hunt_for(double seconds) {
  Catch total;
  for (const Hunt& hunt : hunts()) {
    const auto share = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds / hunts().size()));
    const Catch found = torn_models_of(hunt, 0, Clock::now() + share);
    total = {total.published + found.published, total.torn + found.torn};
  }
  std::printf("{\"published\": %lld, \"torn\": %lld}\n", static_cast<long long>(total.published), static_cast<long long>(total.torn));
  return total.torn == 0 && total.published > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return hunt_for(std::atof(argv[1]));
  std::vector<std::pair<const char*, std::function<void()>>> tests;
#ifndef WAGMA_TEST_SINGLE_BUFFER
  tests.push_back({"every type, resident or not, over threads and processes", [] {
                     for (const Hunt& hunt : hunts()) WAGMA_CHECK(torn_models(hunt, 150) == 0);
                   }});
#endif
  tests.push_back({"groups without syncs", [] { WAGMA_CHECK(torn_models({4, 2, 0, 20000}, 300) == 0); }});
  tests.push_back({"groups and syncs", [] { WAGMA_CHECK(torn_models({4, 2, 5, 20000}, 300) == 0); }});
  tests.push_back({"odd sizes", [] { WAGMA_CHECK(torn_models({3, 2, 7, 9999}, 300) == 0); }});
  return run_tests(tests);
}
