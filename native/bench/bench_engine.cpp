// A whole group average, Engine::average, over engines whose ranks are threads (LocalHub): the slowest rank's call, every rank in one
// group; beside it as many threads that copy as many bytes. `fresh`: calls whose own model was in the sum that they got.
//
//   bench_engine [--repeats N] [--elements N] [--ranks N]      elements: of the largest model; ranks: the largest number of them
#include <memory>

#include "timing.hpp"
#include "wagma/engine.hpp"
#include "wagma/transport_local.hpp"

namespace {

using namespace wagma;
using namespace wagma::timing;

constexpr std::size_t kSizes[] = {1'000, 1'000'000, 25'560'000};
constexpr std::size_t kLarge = 10'000;  // elements: from here on what a barrier adds to an iteration is nothing beside it

struct Measured {
  std::vector<double> calls;  // seconds
  long long fresh = 0;
};

void iterate(Engine& engine, std::vector<float>& model, long long iterations, std::barrier<>& gate, Measured& measured) {
  const bool resident = engine.config().resident;
  void* own = resident ? nullptr : model.data();
  for (Version iteration = 0; iteration < iterations; ++iteration) {
    if (model.size() >= kLarge) gate.arrive_and_wait();
    const double begin = seconds();
    const Outcome outcome = engine.average(iteration, own);
    measured.calls.push_back(seconds() - begin);
    measured.fresh += outcome.fresh;
  }
  engine.close();
}

void bench_one(int ranks, std::size_t count, bool resident, long long iterations, Spread copies) {
  EngineConfig config;
  config.schedule.world_size = config.schedule.group_size = ranks;
  config.count = count;
  config.mean_when_fresh = true;
  config.resident = resident;
  LocalHub hub(ranks);
  std::barrier gate(ranks);
  std::vector<Measured> measured(static_cast<std::size_t>(ranks));
  std::vector<std::string> errors(static_cast<std::size_t>(ranks));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          std::vector<float> model(count, static_cast<float>(rank));
          Engine engine(config, hub.transport(rank, config.buffers(), config.buffer_bytes()), model.data());
          iterate(engine, model, iterations, gate, measured[static_cast<std::size_t>(rank)]);
        } catch (const std::exception& error) {
          errors[static_cast<std::size_t>(rank)] = error.what();
          gate.arrive_and_drop();
        }
      });
    }
  }
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::runtime_error(error);
  }
  std::vector<double> slowest;
  long long fresh = 0;
  for (const Measured& one : measured) fresh += one.fresh;
  for (auto i = static_cast<std::size_t>(iterations / 5); i < static_cast<std::size_t>(iterations); ++i) {
    slowest.push_back(0);
    for (const Measured& one : measured) slowest.back() = std::max(slowest.back(), one.calls[i]);
  }
  const std::string what = std::to_string(count) + " float32, P = " + std::to_string(ranks) + (resident ? ", resident" : ", tensor");
  print_line(what, spread_of(std::move(slowest)), 1e-6, "us", "copies", copies,
             "fresh " + std::to_string(100 * fresh / (iterations * ranks)) + " %");
}

void bench(long long repeats, std::size_t largest, int most) {
  for (int ranks = 2; ranks <= most; ranks *= 2) {
    for (const std::size_t count : kSizes) {
      if (count > largest) continue;
      const long long iterations = count < kLarge ? 100 * repeats : count < 10'000'000 ? 5 * repeats : repeats;
      const Spread copies = time_copies(ranks, count * item_size(DType::float32), iterations);
      for (const bool resident : {false, true}) bench_one(ranks, count, resident, iterations, copies);
    }
  }
}

}  // namespace

int main(int count, char** words) {
  long long repeats = 20, elements = 25'560'000, ranks = 4;
  return run_bench("bench_engine", [&] {
    read_options(count, words, {{"--repeats", &repeats}, {"--elements", &elements}, {"--ranks", &ranks}});
    bench(repeats, static_cast<std::size_t>(elements), static_cast<int>(ranks));
  });
}
