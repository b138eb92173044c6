// The engine with ranks as threads: sums are exact integers, so every execution is checked against what its members
// published; lateness is drawn from a seed. The end of a run, failures and timeouts are here too.
#include <algorithm>
#include <barrier>
#include <chrono>

#include "late_runs.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

void random_lateness() {
  run_late({4, 2, 5, {40, 40, 40, 40}, 1}, 1000);
  run_late({3, 2, 4, {40, 40, 40}, 2}, 257);
  run_late({7, 3, 0, {30, 30, 30, 30, 30, 30, 30}, 3}, 5);  // fewer elements than some groups have slices of a line
  run_late({2, 1, 3, {20, 20}, 4}, 33);
  run_late({1, 1, 2, {10}, 5}, 7);
  run_late({4, 2, 5, {30, 30, 30, 30}, 6, true}, 100);
}

void uneven_ends() {
  run_late({4, 2, 0, {0, 25, 7, 12}, 7}, 64);
  run_late({3, 2, 0, {0, 0, 0}, 8}, 64);
  run_late({5, 2, 6, {23, 23, 5, 17, 23}, 9}, 64);
}

// As after a sync, in the middle of a period, and with ranks that close without another arrival.
void resumed_runs() {
  run_late({4, 2, 5, {40, 40, 40, 40}, 10, false, 20}, 100);
  run_late({3, 2, 0, {30, 30, 30}, 11, true, 7}, 65);
  run_late({5, 2, 6, {30, 12, 22, 30, 17}, 12, false, 12}, 64);
}

// A rank that sleeps is executed for by its progress thread: the others finish long before it wakes.
void late_rank_does_not_delay() {
  const auto config = config_of(4, 2, 0, 128);
  std::vector<double> seconds(4);
  std::vector<Records> records(4);
  const auto body = [&](int rank, Engine& engine) {
    std::vector<double> model(128, published(rank, 0));
    const auto begun = Clock::now();
    if (rank == 3) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    for (Version t = 0; t < 10; ++t) {
      const Outcome outcome = engine.arrive(t, model.data());
      engine.merge(model.data(), outcome.fresh ? 0 : 1, outcome.group_length + (outcome.fresh ? 0 : 1));
    }
    seconds[rank] = std::chrono::duration<double>(Clock::now() - begun).count();
    engine.close();
    records[rank] = engine.take_records();
  };
  check_no_errors(run_ranks(config, [](int) { return 0.0; }, body));
  for (int rank = 0; rank < 3; ++rank) WAGMA_CHECK(seconds[rank] < 1.4);
  WAGMA_CHECK(!records[3].iterations[0].fresh && records[3].iterations[0].merged_version == 9);
  for (const auto& execution : records[3].executions) WAGMA_CHECK(execution.own_stamp == -1 && !execution.activator);
}

void failure_reaches_peers() {
  const auto config = config_of(4, 2, 3, 16);
  const auto begun = Clock::now();
  const auto errors = run_ranks(config, [](int) { return 1.0; }, [](int rank, Engine& engine) {
    std::vector<double> model(16, 1.0);
    for (Version t = 0; t < 9; ++t) {
      if (rank == 2 && t == 4) throw std::runtime_error("bad batch");
      const Outcome outcome = engine.arrive(t, model.data());
      if (outcome.group_length) engine.copy_result(model.data());
    }
    engine.close();
  });
  WAGMA_CHECK(errors[2] == "bad batch");
  for (const int rank : {0, 1, 3}) WAGMA_CHECK(errors[rank] == "rank 2 failed: bad batch");
  WAGMA_CHECK(Clock::now() - begun < std::chrono::seconds(5));
}

// An engine that goes out of scope without close (an exception elsewhere in the program) must not strand its peers either.
void dropped_engine_reaches_peers() {
  const auto config = config_of(2, 2, 1, 16);
  const auto errors = run_ranks(config, [](int) { return 1.0; }, [](int rank, Engine& engine) {
    if (rank == 0) return;
    std::vector<double> model(16, 1.0);
    engine.arrive(0, model.data());
  });
  WAGMA_CHECK(errors[0].empty());
  WAGMA_CHECK(errors[1] == "rank 0 failed: the engine was dropped without being closed");
}

void timeout_names_the_missing() {
  auto config = config_of(3, 2, 1, 16);
  config.timeout_s = 0.3;
  const auto errors = run_ranks(config, [](int) { return 1.0; }, [&](int rank, Engine& engine) {
    std::vector<double> model(16, 1.0);
    if (rank == 1) {
      // Not absent, only late: until the others have given up.
      std::this_thread::sleep_for(std::chrono::milliseconds(900));
      return;
    }
    engine.arrive(0, model.data());
  });
  const std::string expected = ": version 0 (sync of ranks 0, 1, 2) is not complete after 0.3 s; version 0 lacks the part of "
                               "rank 1 (next version 1, executing 0, activated 0)";
  const bool first = errors[0] == "rank 0" + expected, second = errors[2] == "rank 2" + expected;
  WAGMA_CHECK(first || second);  // the first to give up may already have told the other one
  WAGMA_CHECK(first || errors[0].find("rank 2 failed: rank 2" + expected) == 0);
  WAGMA_CHECK(second || errors[2].find("rank 0 failed: rank 0" + expected) == 0);
}

// Ctrl-C in the wait for a sync: that must not end as if nothing had happened, since it would free the buffer in which the model lies.
void an_interrupted_rank_with_a_resident_model_goes_no_further() {
  auto config = config_of(2, 2, 2, 16);
  config.resident = true;
  std::atomic<bool> interrupted{false}, through{false};
  const auto await = [](const std::atomic<bool>& what) {
    const auto limit = Clock::now() + std::chrono::seconds(20);
    while (!what && Clock::now() < limit) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  const auto errors = run_ranks(config, [](int rank) { return 1.0 + rank; }, [&](int rank, Engine& engine) {
    const auto average = [&](Version t) {
      if (engine.arrive(t, nullptr).group_length) engine.copy_result(nullptr);
    };
    average(0);
    if (rank == 1) {
      await(interrupted);
      try {
        average(1);
        average(2);  // into the buffer that is free when the sync is over
      } catch (...) {
        through = true;
        throw;
      }
      through = true;
      return;
    }
    auto* const model = static_cast<double*>(engine.live());
    std::fill_n(model, 16, 5.0);
    std::string said;
    try {
      engine.arrive(1, nullptr, [] { throw std::runtime_error("interrupted"); });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    interrupted = true;
    WAGMA_CHECK(said == "interrupted");
    await(through);
    WAGMA_CHECK(std::all_of(model, model + 16, [](double value) { return value == 5; }));
    engine.close();
  });
  const std::string why = "its wait in iteration 1 was interrupted, and its model is resident";
  WAGMA_CHECK(errors[0] == "rank 0: the engine was aborted: " + why);
  WAGMA_CHECK(errors[1] == "rank 0 failed: " + why);
}

void close_has_a_limit() {
  auto config = config_of(2, 2, 0, 16);
  config.timeout_s = 0.3;
  const auto errors = run_ranks(config, [](int) { return 1.0; }, [&](int rank, Engine& engine) {
    if (rank == 0) engine.close();
    std::this_thread::sleep_for(std::chrono::milliseconds(800));
  });
  WAGMA_CHECK(errors[0].find("rank 0: closed after version none, and heard nothing for 0.3 s") == 0);
}

// An error elsewhere in the program aborts an engine that another thread closes: its progress thread may be joined once only.
void threads_end_it_at_once() {
  const auto config = config_of(1, 1, 2, 4);
  for (int i = 0; i < 50; ++i) {
    check_no_errors(run_ranks(config, [](int) { return 1.0; }, [](int, Engine& engine) {
      std::barrier at_once(3);
      std::vector<std::string> errors(3);
      std::vector<std::thread> threads;
      for (int thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&, thread] {
          at_once.arrive_and_wait();
          try {
            thread == 0 ? engine.close() : engine.abort("an error elsewhere");
          } catch (const ProtocolError&) {  // of a close that came too late
          } catch (const std::exception& error) {
            errors[thread] = error.what();
          }
        });
      }
      for (auto& thread : threads) thread.join();
      for (const auto& error : errors) WAGMA_CHECK(error.empty());
    }));
  }
}

void misuse_is_refused() {
  const auto config = config_of(1, 1, 2, 4);
  check_no_errors(run_ranks(config, [](int) { return 1.0; }, [](int, Engine& engine) {
    std::vector<double> model(4, 1.0);
    const auto refused = [](const std::function<void()>& call) {
      try {
        call();
      } catch (const ProtocolError&) {
        return true;
      }
      return false;
    };
    WAGMA_CHECK(refused([&] { engine.merge(model.data(), 0, 1); }));
    WAGMA_CHECK(refused([&] { engine.arrive(3, model.data()); }));
    engine.begin_at(2, model.data());
    WAGMA_CHECK(refused([&] { engine.arrive(0, model.data()); }));
    engine.begin_at(0, model.data());
    engine.arrive(0, model.data());
    WAGMA_CHECK(refused([&] { engine.arrive(1, model.data()); }));
    WAGMA_CHECK(refused([&] { engine.close(); }));
    engine.copy_result(model.data());
    WAGMA_CHECK(refused([&] { engine.begin_at(2, model.data()); }));
    engine.close();
    WAGMA_CHECK(refused([&] { engine.begin_at(2, model.data()); }));
    WAGMA_CHECK(refused([&] { engine.arrive(1, model.data()); }));
  }));
}

}  // namespace

int main() {
  return run_tests({{"random_lateness", random_lateness},
                    {"uneven_ends", uneven_ends},
                    {"resumed_runs", resumed_runs},
                    {"late_rank_does_not_delay", late_rank_does_not_delay},
                    {"failure_reaches_peers", failure_reaches_peers},
                    {"dropped_engine_reaches_peers", dropped_engine_reaches_peers},
                    {"timeout_names_the_missing", timeout_names_the_missing},
                    {"an_interrupted_rank_with_a_resident_model_goes_no_further", an_interrupted_rank_with_a_resident_model_goes_no_further},
                    {"close_has_a_limit", close_has_a_limit},
                    {"threads_end_it_at_once", threads_end_it_at_once},
                    {"misuse_is_refused", misuse_is_refused}});
}
