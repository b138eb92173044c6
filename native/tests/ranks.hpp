// Ranks as threads for the engine's tests: starts one thread a rank, joins them, and reports the first failure of each.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "wagma/engine.hpp"
#include "wagma/transport_local.hpp"

namespace wagma::testing {

// For the test's own claims: asserts are compiled out of some builds, these never.
#define WAGMA_CHECK(condition)                                                                     \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      throw std::logic_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
    }                                                                                              \
  } while (false)

// Counter-based draws (splitmix64): the same on every run, whatever the threads do.
inline std::uint64_t draw(std::uint64_t seed, std::uint64_t rank, std::uint64_t index) {
  std::uint64_t x = seed * 0x9E3779B97F4A7C15u + rank * 0xBF58476D1CE4E5B9u + index * 0x94D049BB133111EBu;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline EngineConfig config_of(int world_size, int group_size, Version sync_period, std::size_t count) {
  EngineConfig config;
  config.schedule = {world_size, group_size, sync_period, true};
  config.count = count;
  config.dtype = DType::float64;
  config.timeout_s = 30.0;
  config.record = true;
  config.digests = true;
  return config;
}

// Errors by rank, "" for none. `body` gets the rank and its engine, whose initial model is `initial(rank)` everywhere.
inline std::vector<std::string> run_ranks(const EngineConfig& config, const std::function<double(int)>& initial,
                                          const std::function<void(int, Engine&)>& body) {
  const int world_size = config.schedule.world_size;
  const auto hub = std::make_shared<LocalHub>(world_size);
  std::vector<std::string> errors(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const std::vector<double> model(config.count, initial(rank));
        Engine engine(config, hub->transport(rank, config.buffers(), config.buffer_bytes()), model.data());
        try {
          body(rank, engine);
        } catch (const std::exception& error) {
          errors[rank] = error.what();
          engine.abort(error.what());
        }
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

// Runs the named tests; the exit status for main.
inline int run_tests(const std::vector<std::pair<const char*, std::function<void()>>>& tests) {
  int failed = 0;
  for (const auto& [name, test] : tests) {
    try {
      test();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", name, error.what());
      ++failed;
    }
  }
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace wagma::testing
