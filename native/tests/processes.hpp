// Ranks as processes for the native tests: forked from the test, on one node in a memfd.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "ranks.hpp"
#include "wagma/node.hpp"
#include "wagma/transport_node.hpp"

namespace wagma::testing {

// What the processes of a test tell it; zeros at first.
struct Told {
  static constexpr int kNumbers = 8;
  char error[400];
  std::atomic<std::int64_t> numbers[kNumbers];
};

class Processes {
 public:
  explicit Processes(int count) : count_(count) {
    void* place = ::mmap(nullptr, sizeof(Told) * count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) throw std::runtime_error("mmap");
    told_ = static_cast<Told*>(place);
    for (int i = 0; i < count; ++i) new (told_ + i) Told{};
  }
  ~Processes() {
    for (const pid_t process : processes_) {
      if (process != kReaped) ::kill(process, SIGKILL);
    }
    wait();
    ::munmap(told_, sizeof(Told) * count_);
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  // The parent must have no other threads.
  void start(const std::function<void(int)>& body) {
    for (int i = 0; i < count_; ++i) {
      const pid_t process = ::fork();
      if (process < 0) throw std::runtime_error("fork");
      if (process > 0) {
        processes_.push_back(process);
        continue;
      }
      try {
        body(i);
      } catch (const std::exception& error) {
        std::strncpy(told_[i].error, error.what(), sizeof(Told::error) - 1);
      }
      ::_exit(0);
    }
  }
  // Their statuses, as waitpid gives them.
  std::vector<int> wait() {
    std::vector<int> statuses;
    for (const pid_t process : processes_) {
      int status = SIGKILL;
      if (process != kReaped) ::waitpid(process, &status, 0);
      statuses.push_back(status);
    }
    processes_.clear();
    return statuses;
  }
  void kill(int index) { ::kill(processes_[index], SIGKILL); }
  // After kill: as long as its parent has not asked for it, the system keeps a process that has ended, and nobody sees that it is gone.
  void reap(int index) {
    ::waitpid(processes_[index], nullptr, 0);
    processes_[index] = kReaped;
  }
  Told& told(int index) { return told_[index]; }

  // One process a rank, each with its engine; the first error is thrown here.
  static void run_ranks(const EngineConfig& config, const std::function<void(int, Engine&, Told&)>& body,
                        const std::function<void(Processes&)>& after = {}) {
    const Node::Plan plan{config.schedule.world_size, config.buffers(), config.buffer_bytes()};
    const auto node = Node::create(plan);
    Processes processes(plan.world_size);
    processes.start([&](int rank) {
      const std::vector<double> initial(config.count, 0.0);  // as wide as the widest type
      Engine engine(config, std::make_shared<NodeTransport>(node, rank), initial.data());
      try {
        body(rank, engine, processes.told(rank));
      } catch (const std::exception& error) {
        engine.abort(error.what());
        throw;
      }
    });
    const auto statuses = processes.wait();
    for (int rank = 0; rank < plan.world_size; ++rank) {
      if (processes.told(rank).error[0]) throw std::logic_error(processes.told(rank).error);
      if (statuses[rank] != 0) throw std::logic_error("rank " + std::to_string(rank) + ": status " + std::to_string(statuses[rank]));
    }
    if (after) after(processes);
  }

 private:
  static constexpr pid_t kReaped = 0;  // never to be given to kill()
  const int count_;
  Told* told_ = nullptr;
  std::vector<pid_t> processes_;
};

}  // namespace wagma::testing
