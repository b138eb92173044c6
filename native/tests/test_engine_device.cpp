// Engines whose models are on the emulated device: the runs of test_engine.cpp and test_eager.cpp, bits beside those of host engines, and a
// device that is slow, never ends or fails while the peers go on.
#include <array>
#include <atomic>
#include <chrono>
#include <functional>

#include "device_ranks.hpp"
#include "eager_runs.hpp"
#include "late_runs.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

using Clock = std::chrono::steady_clock;

// Two ranks whose runs are all alike: one after the other they come for a version, the second one late, when the first one has returned from it.
struct Turns {
  std::array<std::atomic<Version>, 2> returned{-1, -1};
  static bool is_late(int rank, Version version) { return rank != version % 2; }
  void await(int rank, Version version, bool is_sync) const {
    const Version needed = !is_sync && is_late(rank, version) ? version : version - 1;
    const auto limit = Clock::now() + std::chrono::seconds(30);
    while (returned[1 - rank].load() < needed) {
      if (Clock::now() > limit) throw std::runtime_error("the other rank has not returned from version " + std::to_string(needed));
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
};

std::vector<double> drawn(int rank, Version version, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<double>(draw(77, rank, version * 1000003 + static_cast<Version>(i)) % 1000003) / 997.0;
  return values;
}

struct Seen {
  std::vector<std::vector<double>> models;
  std::vector<Records> records;
};

// With `fast` the mean goes where a fresh rank wants it, and digests are off, which that needs.
Seen run_alike(const MakeSetting& make, bool fast) {
  constexpr std::size_t kCount = 1237;
  auto config = config_of(2, 2, 4, kCount);
  config.mean_when_fresh = true;
  config.digests = !fast;
  const auto setting = make(config);
  Seen seen{std::vector<std::vector<double>>(2), std::vector<Records>(2)};
  Turns turns;
  const auto body = [&](int rank, Engine& engine) {
    const auto model = setting->model(rank, std::vector<double>(kCount));
    for (Version t = 0; t < 12; ++t) {
      model->set(drawn(rank, t, kCount));
      const bool is_sync = config.schedule.is_sync(t);
      turns.await(rank, t, is_sync);
      const Outcome outcome = engine.average(t, model->own());
      WAGMA_CHECK(outcome.fresh == (is_sync || !Turns::is_late(rank, t)));
      const auto values = model->values();
      seen.models[rank].insert(seen.models[rank].end(), values.begin(), values.end());
      turns.returned[rank] = t;
    }
    engine.close();
    seen.records[rank] = engine.take_records();
  };
  check_no_errors(run_in(*setting, config, [](int rank) { return rank + 0.5; }, body));
  return seen;
}

void bits_are_those_of_host_engines(const MakeSetting& make) {
  for (const bool fast : {false, true}) {
    const Seen host = run_alike(on_host, fast), device = run_alike(make, fast);
    for (int rank = 0; rank < 2; ++rank) {
      WAGMA_CHECK(host.models[rank] == device.models[rank]);
      WAGMA_CHECK(host.records[rank].iterations.size() == 12 && device.records[rank].iterations.size() == 12);
      for (int t = 0; t < 12; ++t) {
        const auto &a = host.records[rank].iterations[t], &b = device.records[rank].iterations[t];
        WAGMA_CHECK(a.published_digest == b.published_digest && a.merged_digest == b.merged_digest && a.model_digest == b.model_digest);
        WAGMA_CHECK((a.model_digest == 0) == fast);
        const auto &c = host.records[rank].executions[t], &d = device.records[rank].executions[t];
        WAGMA_CHECK(c.contribution_digest == d.contribution_digest && c.sum_digest == d.sum_digest && c.own_stamp == d.own_stamp);
      }
    }
  }
}

void late_ranks(const MakeSetting& make) {
  run_late({4, 2, 5, {25, 25, 25, 25}, 1}, 1000, make);
  run_late({3, 2, 4, {20, 20, 20}, 2}, 257, make);
  run_late({1, 1, 2, {10}, 5}, 7, make);
  run_late({4, 2, 5, {20, 20, 20, 20}, 6, true}, 100, make);
  run_late({4, 2, 0, {0, 15, 7, 12}, 7}, 64, make);
  run_late({5, 2, 6, {30, 12, 22, 30, 17}, 12, false, 12}, 64, make);
}

void gradients(const MakeSetting& make) {
  eager::every_gradient_once({0, 5, {40, 12, 31, 3}, 24}, make);
  eager::every_gradient_once({1, 0, {40, 40, 40, 40}, 22}, make);
}

// A sync of one rank: the raw sum becomes a model in place, also where its items are smaller than sums.
void one_rank(const std::function<std::unique_ptr<DeviceSetting>(const EngineConfig&)>& make) {
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    auto config = config_of(1, 1, 1, 5000);
    config.dtype = dtype;
    const auto setting = make(config);
    std::vector<std::byte> items(config.count * item_size(dtype)), initial(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) items[i] = static_cast<std::byte>(draw(5, 0, i) % 127);
    const auto engine = setting->engine(config, 0, initial.data());
    const auto model = setting->items(0, dtype, config.count);
    for (Version t = 0; t < 3; ++t) {
      model->set(items.data());
      WAGMA_CHECK(engine->average(t, model->own()).fresh);
      WAGMA_CHECK(model->items() == items);
    }
    engine->close();
    const Records records = engine->take_records();
    WAGMA_CHECK(records.executions.size() == 3);
    for (const auto& execution : records.executions) WAGMA_CHECK(execution.sum_digest == digest(items.data(), items.size()));
  }
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Rank 1's device has work that does not end; rank 0 goes through all versions meanwhile, served by rank 1's progress thread.
void peers_go_on_while_a_device_is_busy(DeviceSetting& setting, const EngineConfig& config) {
  Gate gate(setting.stream(1));
  const auto body = [&](int rank, Engine& engine) {
    const auto model = setting.model(rank, std::vector<double>(config.count, published(rank, 0)));
    if (rank == 1) {
      const Outcome outcome = engine.arrive(0, model->own());
      WAGMA_CHECK(!outcome.fresh && outcome.merged_version == 9);
      engine.merge(model->own(), 1, outcome.group_length + 1);
      const double others = published(0, 9) + published(1, -1);
      WAGMA_CHECK(model->values().front() == (others + published(1, 0)) / 3 && model->values().back() == model->values().front());
    } else {
      for (Version t = 0; t < 10; ++t) {
        model->set(std::vector<double>(config.count, published(0, t)));
        const Outcome outcome = engine.arrive(t, model->own());
        WAGMA_CHECK(outcome.fresh && outcome.merged_version == t);
        engine.merge(model->own(), 0, outcome.group_length);
        WAGMA_CHECK(model->values().front() == (published(0, t) + published(1, -1)) / 2);
      }
      gate.open();
    }
    engine.close();
  };
  check_no_errors(run_in(setting, config, [](int rank) { return published(rank, -1); }, body));
}

// Rank 1's waits end soon, rank 0's when they are answered: however busy the machine is.
class Impatient final : public Setting {
 public:
  explicit Impatient(Setting& inner) : inner_(inner) {}
  std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
    EngineConfig own = config;
    if (rank == 1) own.timeout_s = 0.2;
    return inner_.engine(own, rank, initial);
  }
  std::unique_ptr<Model> model(int rank, const std::vector<double>& values) override { return inner_.model(rank, values); }

 private:
  Setting& inner_;
};

// It never ends: the wait has a limit, the engine takes no more models, the peers hear of it, and what the device may still write stays.
void a_device_that_never_ends(DeviceSetting& setting, const EngineConfig& config, const std::string& copied) {
  const auto model = setting.model(1, std::vector<double>(config.count, 1.0));
  Gate gate(setting.stream(1));
  Impatient impatient(setting);
  const auto body = [&](int rank, Engine& engine) {
    if (rank == 0) {
      const auto other = setting.model(0, std::vector<double>(config.count, 1.0));
      WAGMA_CHECK(engine.arrive(0, other->own()).group_length == 2);
      engine.copy_result(other->own());
      throw std::runtime_error(error_of([&] { engine.close(); }));
    }
    const std::string said = error_of([&] { engine.arrive(0, model->own()); });
    WAGMA_CHECK(said == "rank 1: iteration 0: the device has not " + copied + " the model after 0.2 s");
    WAGMA_CHECK(error_of([&] { engine.arrive(0, model->own()); }) ==
                "rank 1: iteration 0: the device had not " + copied + " the model when that was given up; the engine takes no more models");
    WAGMA_CHECK(!engine.settled(0.01));
    throw std::runtime_error(said);
  };
  const auto errors = run_in(impatient, config, [](int) { return 1.0; }, body);  // engines end here, and their memory does not
  WAGMA_CHECK(errors[1] == "rank 1: iteration 0: the device has not " + copied + " the model after 0.2 s");
  WAGMA_CHECK(errors[0].starts_with("rank 1 failed: "));
}

struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("Ctrl-C") {}
};

// What else ends such a wait: a peer's failure, and the application's own word. Both long before the device would.
void what_ends_a_wait(DeviceSetting& setting, const EngineConfig& config, bool by_peer) {
  const auto begun = Clock::now();
  Clock::duration waited{};
  const auto model = setting.model(1, std::vector<double>(config.count, 1.0));
  Gate gate(setting.stream(1));
  const auto body = [&](int rank, Engine& engine) {
    if (rank == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      if (by_peer) throw std::runtime_error("bad batch");
      engine.close();
      return;
    }
    const std::string said = error_of([&] {
      engine.arrive(0, model->own(), [&] {
        if (!by_peer) throw Interrupted();
      });
    });
    waited = Clock::now() - begun;
    WAGMA_CHECK(said == (by_peer ? "rank 0 failed: bad batch" : "Ctrl-C"));
    gate.open();
    throw std::runtime_error(said);
  };
  run_in(setting, config, [](int) { return 1.0; }, body);
  WAGMA_CHECK(waited > Clock::duration::zero() && waited < std::chrono::seconds(2));
}

void what_is_refused(const MakeSetting& make) {
  auto config = config_of(1, 1, 2, 4);
  config.resident = true;
  const auto setting = make(config);
  const std::vector<double> initial(4, 1.0);
  WAGMA_CHECK(error_of([&] { setting->engine(config, 0, initial.data()); }) ==
              "resident = True: must be False for a model on a device whose buffers are in host memory");
}

// The last of all, as no device of this process answers any more.
void a_device_that_fails() {
  const auto config = config_of(2, 2, 1, 100);
  StagedSetting setting(config);
  // Nobody can know what such a device still does: the models stay. Made before it fails, as is each rank's engine.
  static auto& models = *new std::array<std::unique_ptr<Model>, 2>;
  for (int rank = 0; rank < 2; ++rank) models[rank] = setting.model(rank, std::vector<double>(100, 1.0));
  std::array<std::atomic<bool>, 2> reached{};
  const auto await = [&](int rank) {
    const auto limit = Clock::now() + std::chrono::seconds(30);
    while (!reached[rank]) {
      if (Clock::now() > limit) throw std::runtime_error("rank " + std::to_string(rank) + " has not come");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const auto body = [&](int rank, Engine& engine) {
    if (rank == 0) {  // has its engine, and comes when rank 1 has been told: else who fails first, and who hears of whom, is luck
      reached[0] = true;
      await(1);
      engine.arrive(0, models[0]->own());
      return;
    }
    await(0);
    setting.stream(1).fail();
    WAGMA_CHECK(!error_of([&] { setting.stream(1).synchronize(); }).empty());
    const std::string said = error_of([&] { engine.arrive(0, models[1]->own()); });
    reached[1] = true;
    throw std::runtime_error(said);
  };
  const auto errors = run_in(setting, config, [](int) { return 1.0; }, body);
  WAGMA_CHECK(errors[1].starts_with("rank 1: iteration 0: ") && errors[1].find('\n') == std::string::npos);
  WAGMA_CHECK(errors[1].find("emulated") != std::string::npos);
}

using MakeDevice = std::function<std::unique_ptr<DeviceSetting>(const EngineConfig&)>;

// A resident model's stream has to be handed in, and is no host array's.
void a_resident_model_comes_with_its_stream() {
  const auto config = config_of(1, 1, 2, 4);
  ResidentSetting setting(config);
  const std::vector<double> initial(4, 1.0);
  const auto engine = setting.engine(config, 0, initial.data());
  WAGMA_CHECK(error_of([&] { engine->arrive(0, nullptr); }) ==
              "rank 0: a model is handed in unless it is resident; of one on a device its stream is");
  const auto model = setting.items(0, DType::float64, 4);
  WAGMA_CHECK(engine->arrive(0, model->own()).fresh);
  engine->merge(model->own(), 0, 1);
  engine->close();
}

void waits(const MakeDevice& make, const std::string& copied) {
  const auto config = config_of(2, 2, 0, 500);
  peers_go_on_while_a_device_is_busy(*make(config), config);
  what_ends_a_wait(*make(config), config, true);
  what_ends_a_wait(*make(config), config, false);
  a_device_that_never_ends(*make(config), config, copied);
}

std::unique_ptr<DeviceSetting> in_host_memory(const EngineConfig& config) { return std::make_unique<StagedSetting>(config); }
std::unique_ptr<DeviceSetting> on_the_device(const EngineConfig& config) { return std::make_unique<SharedSetting>(config); }
std::unique_ptr<DeviceSetting> in_the_buffers(const EngineConfig& config) { return std::make_unique<ResidentSetting>(config); }

// Where nothing is delayed, operations are over before anybody looks.
void with_delays(const std::function<void()>& test) {
  emulated::settings().delay_us = 60;
  emulated::settings().seed = 11;
  test();
  emulated::settings().delay_us = 0;
}

}  // namespace

int main() {
  return run_tests({{"staged: bits", [] { bits_are_those_of_host_engines(staged); }},
                    {"staged: late ranks", [] { late_ranks(staged); }},
                    {"staged: gradients", [] { gradients(staged); }},
                    {"staged: one rank", [] { one_rank(in_host_memory); }},
                    {"staged: waits", [] { waits(in_host_memory, "copied"); }},
                    {"bounced: bits", [] { bits_are_those_of_host_engines(bounced); }},
                    {"bounced: late ranks", [] { run_late({4, 2, 5, {25, 25, 25, 25}, 1}, 1000, bounced); }},
                    {"shared: bits", [] { bits_are_those_of_host_engines(shared); }},
                    {"shared: late ranks", [] { late_ranks(shared); }},
                    {"shared: gradients", [] { gradients(shared); }},
                    {"shared: one rank", [] { one_rank(on_the_device); }},
                    {"shared: waits", [] { waits(on_the_device, "copied"); }},
                    {"resident: bits", [] { bits_are_those_of_host_engines(resident); }},
                    {"resident: late ranks", [] { late_ranks(resident); }},
                    {"resident: one rank", [] { one_rank(in_the_buffers); }},
                    {"resident: waits", [] { waits(in_the_buffers, "published"); }},
                    {"resident: its stream", a_resident_model_comes_with_its_stream},
                    {"staged, delayed", [] { with_delays([] { run_late({3, 2, 4, {20, 20, 20}, 3}, 257, staged); }); }},
                    {"shared, delayed", [] { with_delays([] { run_late({4, 2, 5, {20, 20, 20, 20}, 4}, 257, shared); }); }},
                    {"resident, delayed", [] { with_delays([] { run_late({4, 2, 5, {20, 20, 20, 20}, 8, true}, 257, resident); }); }},
                    {"what is refused", [] { what_is_refused(staged); }},
                    {"a device that fails", a_device_that_fails}});
}
