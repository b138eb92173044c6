// Many collectives with random lateness over several engines at once in the same ranks, with ends that differ: the sums are checked where
// what went into them is known, and memory must not grow.
//
//   test_soak [COLLECTIVES]      so many (of a rank and an engine), over threads and processes; prints counts as JSON
#include <algorithm>
#include <cmath>
#include <fstream>

#include "pretended_cores.hpp"
#include "processes.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasureMemory = false;  // sanitizers keep what was freed
#else
constexpr bool kMeasureMemory = true;
#endif
constexpr std::int64_t kGrowthBytes = 4 << 20;

struct Course {
  int world_size, group_size;
  Version sync_period;
  std::size_t count;
  bool averages = false;  // by Engine::average, as if each rank had a core: straight into the model, where all have arrived
};

// Several engines at once, each with a schedule of its own.
const std::vector<std::vector<Course>>& soaks() {
  static const std::vector<std::vector<Course>> all{
      {{2, 2, 0, 257}, {2, 1, 3, 64}},
      {{3, 2, 0, 1000}, {3, 3, 5, 33}},
      {{4, 2, 0, 129}, {4, 4, 0, 40000}, {4, 2, 10, 16}},
      {{4, 2, 6, 300}},
      {{8, 4, 0, 512}, {8, 2, 7, 100}},
      {{2, 2, 0, 20000, true}, {2, 2, 3, 100, true}},
      {{3, 2, 0, 40000, true}, {3, 3, 2, 500, true}},
      {{4, 4, 0, 900, true}, {4, 2, 4, 20000, true}},
  };
  return all;
}

// Its remainder modulo 1000 names the rank, so that the one of a sum says that each member is in it once.
double published(int rank, Version version) { return static_cast<double>((version + 2) * 1000 + rank); }

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

Version iterations_of(Version most, std::uint64_t seed, int engine, int rank, bool uneven) {
  return uneven && rank > 0 ? most - static_cast<Version>(draw(seed, engine, rank) % (most / 4 + 1)) : most;
}

void check_result(const Course& course, const Schedule& schedule, int rank, Version t, const Outcome& outcome, const std::vector<double>& model,
                  Version all_arrive_before) {
  WAGMA_CHECK(std::all_of(model.begin(), model.end(), [&](double x) { return x == model.front(); }));
  if (course.sync_period == 0) {
    int ranks = 0, divisor = 1;
    double sum = model.front();
    for (const int member : schedule.group(rank, outcome.merged_version)) ranks += member;
    if (course.averages) {  // the sum is whole, so its mean's bits are those of one number only
      divisor = outcome.group_length + !outcome.fresh;
      const double total = std::round(model.front() * divisor);
      WAGMA_CHECK(model.front() == total / divisor);
      sum = outcome.fresh ? total : total - published(rank, t);
    }
    WAGMA_CHECK(std::fmod(sum, 1000.0) == ranks);
  } else if (schedule.is_sync(t) && t < all_arrive_before) {
    double sum = 0;  // whole numbers: exact in any order
    for (int member = 0; member < course.world_size; ++member) sum += published(member, t);
    WAGMA_CHECK(model.front() == sum / course.world_size);
  }
}

// One rank with all its engines in turns. Returns the bytes by which it has grown since it was warm.
std::int64_t soak(const std::vector<Course>& courses, const std::vector<Engine*>& engines, int rank, Version most, std::uint64_t seed) {
  std::vector<std::vector<double>> models;
  std::vector<Version> ends, all_before;
  for (std::size_t e = 0; e < courses.size(); ++e) {
    models.emplace_back(courses[e].count);
    // A close waits for all ranks, and a sync for whoever has not closed: one thread with several engines must not mix the two.
    const bool uneven = courses.size() == 1 || courses[e].sync_period == 0;
    ends.push_back(iterations_of(most, seed, static_cast<int>(e), rank, uneven));
    Version first = most;
    for (int other = 0; other < courses[e].world_size; ++other) first = std::min(first, iterations_of(most, seed, static_cast<int>(e), other, uneven));
    all_before.push_back(first);
  }
  std::int64_t warm = 0;
  for (Version t = 0; t < most; ++t) {
    if (t == most / 4) warm = resident_bytes();
    for (std::size_t e = 0; e < engines.size(); ++e) {
      if (t >= ends[e]) continue;
      const std::uint64_t drawn = draw(seed + e, rank, t);
      if (drawn % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(drawn / 64 % 800));
      std::fill(models[e].begin(), models[e].end(), published(rank, t));
      const Outcome outcome = courses[e].averages ? engines[e]->average(t, models[e].data()) : engines[e]->arrive(t, models[e].data());
      if (!courses[e].averages) engines[e]->copy_result(models[e].data());
      check_result(courses[e], engines[e]->config().schedule, rank, t, outcome, models[e], all_before[e]);
    }
  }
  const std::int64_t growth = resident_bytes() - warm;
  for (Engine* engine : engines) engine->close();
  return growth;
}

EngineConfig soak_config(const Course& course) {
  auto config = config_of(course.world_size, course.group_size, course.sync_period, course.count);
  config.record = config.digests = false;
  config.mean_when_fresh = course.averages;
  return config;
}

// `make` gives the transport of a rank to the engine of a course.
template <class Make>
std::int64_t soak_rank(const std::vector<Course>& courses, int rank, Version most, std::uint64_t seed, Make make) {
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<Engine*> pointers;
  try {
    for (std::size_t e = 0; e < courses.size(); ++e) {
      const auto config = soak_config(courses[e]);
      const std::vector<double> initial(courses[e].count, published(rank, -1));
      engines.push_back(std::make_unique<Engine>(config, make(e, config), initial.data()));
      pointers.push_back(engines.back().get());
    }
    return soak(courses, pointers, rank, most, seed);
  } catch (const std::exception& error) {
    for (Engine* engine : pointers) engine->abort(error.what());
    throw;
  }
}

void check_growth(std::int64_t bytes) {
  if (kMeasureMemory && bytes > kGrowthBytes) throw std::logic_error("memory has grown by " + std::to_string(bytes) + " bytes");
}

void over_threads(const std::vector<Course>& courses, Version most, std::uint64_t seed) {
  const int ranks = courses.front().world_size;
  pretended_cores = courses.front().averages ? courses.front().world_size : 0;
  std::vector<std::unique_ptr<LocalHub>> hubs;
  for (std::size_t e = 0; e < courses.size(); ++e) hubs.push_back(std::make_unique<LocalHub>(ranks));
  std::vector<std::string> errors(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        check_growth(soak_rank(courses, rank, most, seed, [&](std::size_t e, const EngineConfig& config) {
          return hubs[e]->transport(rank, config.buffers(), config.buffer_bytes());
        }));
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

void over_processes(const std::vector<Course>& courses, Version most, std::uint64_t seed) {
  const int ranks = courses.front().world_size;
  pretended_cores = courses.front().averages ? courses.front().world_size : 0;
  std::vector<std::shared_ptr<Node>> nodes;
  for (const Course& course : courses) {
    const auto config = soak_config(course);
    nodes.push_back(Node::create({ranks, config.buffers(), config.buffer_bytes()}));
  }
  Processes processes(ranks);
  processes.start([&](int rank) {
    check_growth(soak_rank(courses, rank, most, seed,
                           [&](std::size_t e, const EngineConfig&) { return std::make_shared<NodeTransport>(nodes[e], rank); }));
  });
  const auto statuses = processes.wait();
  for (int rank = 0; rank < ranks; ++rank) {
    if (processes.told(rank).error[0]) throw std::logic_error(processes.told(rank).error);
    WAGMA_CHECK(statuses[rank] == 0);
  }
}

std::int64_t versions_of_a_round() {
  std::int64_t engines = 0;
  for (const auto& courses : soaks()) engines += 2 * static_cast<std::int64_t>(courses.size());  // threads and processes
  return engines;
}

void soak_all(Version most, std::uint64_t seed) {
  for (const auto& courses : soaks()) over_processes(courses, most, seed);  // before any thread has run
  for (const auto& courses : soaks()) over_threads(courses, most, seed + 100);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) return run_tests({{"some hundred collectives", [] { soak_all(120, 41); }}});
  const std::int64_t collectives = std::atoll(argv[1]);
  const Version most = (collectives + versions_of_a_round() - 1) / versions_of_a_round();
  const int status = run_tests({{"soak", [&] { soak_all(most, 42); }}});
  std::printf("{\"collectives\": %lld}\n", static_cast<long long>(most * versions_of_a_round()));
  return status;
}
