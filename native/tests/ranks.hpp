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

// A model of the application's: of float64, wherever it is.
class Model {
 public:
  virtual ~Model() = default;
  virtual void* own() = 0;  // what an engine is handed
  virtual void set(const std::vector<double>& values) = 0;
  virtual std::vector<double> values() = 0;
};

// In which memory the ranks of one run have their models, and how they reach each other there.
class Setting {
 public:
  virtual ~Setting() = default;
  virtual std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) = 0;
  virtual std::unique_ptr<Model> model(int rank, const std::vector<double>& values) = 0;
};
using MakeSetting = std::function<std::unique_ptr<Setting>(const EngineConfig&)>;

class HostModel final : public Model {
 public:
  explicit HostModel(const std::vector<double>& values) : values_(values) {}
  void* own() override { return values_.data(); }
  void set(const std::vector<double>& values) override { values_ = values; }
  std::vector<double> values() override { return values_; }

 private:
  std::vector<double> values_;
};

class HostSetting final : public Setting {
 public:
  explicit HostSetting(const EngineConfig& config) : hub_(config.schedule.world_size) {}
  std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
    return std::make_unique<Engine>(config, hub_.transport(rank, config.buffers(), config.buffer_bytes()), initial);
  }
  std::unique_ptr<Model> model(int, const std::vector<double>& values) override { return std::make_unique<HostModel>(values); }

 private:
  LocalHub hub_;
};

inline std::unique_ptr<Setting> on_host(const EngineConfig& config) { return std::make_unique<HostSetting>(config); }

// Errors by rank, "" for none. `body` gets the rank and its engine, whose initial model is `initial(rank)` everywhere.
inline std::vector<std::string> run_in(Setting& setting, const EngineConfig& config, const std::function<double(int)>& initial,
                                       const std::function<void(int, Engine&)>& body) {
  const int world_size = config.schedule.world_size;
  std::vector<std::string> errors(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const std::vector<double> model(config.count, initial(rank));
        const auto engine = setting.engine(config, rank, model.data());
        try {
          body(rank, *engine);
        } catch (const std::exception& error) {
          errors[rank] = error.what();
          engine->abort(error.what());
        }
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

inline std::vector<std::string> run_ranks(const EngineConfig& config, const std::function<double(int)>& initial,
                                          const std::function<void(int, Engine&)>& body) {
  HostSetting setting(config);
  return run_in(setting, config, initial, body);
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
