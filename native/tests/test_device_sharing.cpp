// Memory of an emulated device in another process: what one writes the other's queue reads, and what is refused, with which words. Also what a
// forked process has of its parent's device, and that a queue whose work does not end does not keep its process.
#include "../device/emulated/application.hpp"
#include "../device/emulated/settings.hpp"
#include "processes.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

constexpr double kLimit = 20.0;

// What the two processes of a test tell each other.
struct Board {
  std::atomic<int> step;
  char text[600];
};

class Shared {
 public:
  Shared() : board_(static_cast<Board*>(::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (board_ == MAP_FAILED) throw std::runtime_error("mmap");
  }
  ~Shared() { ::munmap(board_, sizeof(Board)); }
  Board& operator*() const { return *board_; }
  Board* operator->() const { return board_; }
  void until(int step) const {
    for (int i = 0; board_->step.load() < step; ++i) {
      if (i > 20'000) throw std::logic_error("step " + std::to_string(step) + " has not come");
      ::usleep(1000);
    }
  }

 private:
  Board* const board_;
};

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const DeviceError& error) {
    WAGMA_CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Two processes; the first error of either is thrown here.
void two(const std::function<void(const Shared&)>& first, const std::function<void(const Shared&)>& second) {
  const Shared shared;
  Processes processes(2);
  processes.start([&](int i) {
    try {
      (i == 0 ? first : second)(shared);
    } catch (...) {
      shared->step = 1000;  // nobody waits for it
      throw;
    }
  });
  const auto statuses = processes.wait();
  for (int i = 0; i < 2; ++i) {
    if (processes.told(i).error[0]) throw std::logic_error(processes.told(i).error);
    WAGMA_CHECK(statuses[i] == 0);
  }
}

void tell(const Shared& shared, const std::string& text) {
  WAGMA_CHECK(text.size() < sizeof(Board::text));
  std::strcpy(shared->text, text.c_str());
}

void memory_is_shared() {
  two(
      [](const Shared& shared) {
        const auto device = emulated_device(0);
        std::byte* const memory = device->allocate(3 << 20);
        tell(shared, device->share(memory));
        WAGMA_CHECK(device->share(memory) == shared->text);
        EmulatedStream application;
        application.sleep(0.02);
        application.fill(memory, 1000, DType::float32, 1.5);
        application.synchronize();
        shared->step = 1;
        shared.until(2);
        WAGMA_CHECK(reinterpret_cast<float*>(memory)[700'000] == 1.5f && reinterpret_cast<float*>(memory)[700'001] == 0.0f);
        device->release(memory);
        shared->step = 3;
      },
      [](const Shared& shared) {
        const auto device = emulated_device(0);
        const auto queue = device->queue(true);
        shared.until(1);
        std::byte* const memory = device->open(shared->text);
        std::byte* const again = device->open(shared->text);  // as another rank of the same process
        WAGMA_CHECK(again == memory);
        device->close(again);
        const auto* const floats = reinterpret_cast<const float*>(memory);
        for (int i = 0; i < 1000; ++i) WAGMA_CHECK(floats[i] == 1.5f);
        queue->copy(memory + 2'800'000, memory + 3996, 4);
        queue->wait(queue->mark(), kLimit);
        shared->step = 2;
        shared.until(3);
        WAGMA_CHECK(floats[5] == 1.5f);  // its owner has let it go, we have not
        device->close(memory);
        device->close(memory);  // once too often changes nothing
      });
}

void what_is_refused_is_said() {
  two(
      [](const Shared& shared) {
        const auto device = emulated_device(0);
        std::byte* const memory = device->allocate(100);
        tell(shared, device->share(memory));
        const auto inside = [&] { device->share(memory + 256); };
        try {
          inside();
          WAGMA_CHECK(false);
        } catch (const std::invalid_argument& error) {
          WAGMA_CHECK(has(error.what(), "must be the beginning of memory that this device has allocated"));
        }
        emulated::settings().refuse_ipc = true;
        const std::string text = refusal([&] { device->share(memory); });
        WAGMA_CHECK(has(text, "device emulated:0: cudaIpcGetMemHandle of 2097152 bytes, to share them with other processes: operation not "));
        WAGMA_CHECK(device->open(shared->text) == memory);  // within the process it is an address
        shared->step = 1;
        shared.until(2);
        device->release(memory);
        WAGMA_CHECK(has(refusal([&] { device->open(shared->text); }), "it has been released"));
        shared->step = 3;
      },
      [](const Shared& shared) {
        const auto device = emulated_device(0);
        shared.until(1);
        const std::string text = shared->text;
        for (const std::string& wrong : {std::string("nonsense"), text + " x", text.substr(0, text.size() - 2), "x" + text}) {
          WAGMA_CHECK(has(refusal([&] { device->open(wrong); }), "is not what Device::share gives: \"" + wrong.substr(0, 80)));
        }
        std::string other = text;
        other.replace(other.find(" emulated "), 10, " cuda ");
        WAGMA_CHECK(has(refusal([&] { device->open(other); }), "another kind of device"));
        emulated::settings().refuse_ipc_open = true;
        const std::string refused = refusal([&] { device->open(text); });
        WAGMA_CHECK(has(refused, "device emulated:0: cannot open 2097152 bytes of process ") && has(refused, "cudaIpcOpenMemHandle: mapping of buffer object failed"));
        WAGMA_CHECK(has(refused, "share process ids and IPC"));
        emulated::settings().refuse_ipc_open = false;
        device->close(device->open(text));
        shared->step = 2;
        shared.until(3);
        WAGMA_CHECK(has(refusal([&] { device->open(text); }), "mapping of buffer object failed"));  // it is not there any more
      });
}

// Devices of one process, and of two, which have no path to each other; then one.
void devices_reach_each_other() {
  two(
      [](const Shared& shared) {
        const auto zero = emulated_device(0), one = emulated_device(1);
        std::byte* const memory = zero->allocate(100);
        tell(shared, zero->share(memory));
        emulated::settings().refuse_peer = true;
        WAGMA_CHECK(has(refusal([&] { one->open(shared->text); }), "device emulated:1: cannot open 2097152 bytes of process "));
        WAGMA_CHECK(has(refusal([&] { one->open(shared->text); }), "the two devices have no path to each other's memory"));
        emulated::settings().refuse_peer = false;
        WAGMA_CHECK(one->open(shared->text) == memory && one->open(shared->text) == memory);  // the second time it is enabled already
        shared->step = 1;
        shared.until(2);
        zero->release(memory);
      },
      [](const Shared& shared) {
        const auto one = emulated_device(1);
        shared.until(1);
        emulated::settings().refuse_peer = true;
        WAGMA_CHECK(has(refusal([&] { one->open(shared->text); }), "the two devices have no path to each other's memory"));
        emulated::settings().refuse_peer = false;
        one->close(one->open(shared->text));
        shared->step = 2;
      });
}

// What the environment may say of the emulated devices; each in a process of its own, which reads it once.
void knobs_are_read() {
  struct Case {
    const char *name, *value, *said;
  };
  const std::vector<Case> cases{{"WAGMA_EMULATED_MEMORY", "1GB", "WAGMA_EMULATED_MEMORY = 1GB: must be a whole number from 0 to 9223372036854775807"},
                                {"WAGMA_EMULATED_DEVICES", "17", "WAGMA_EMULATED_DEVICES = 17: must be a whole number from 0 to 16"},
                                {"WAGMA_EMULATED_DELAY_US", "-1", "WAGMA_EMULATED_DELAY_US = -1: must be a whole number from 0 to 10000000"},
                                {"WAGMA_EMULATED_REFUSE", "pin,ip", "WAGMA_EMULATED_REFUSE = ip: must be a list of ipc, ipc-open, pin, peer"},
                                {"WAGMA_EMULATED_DEVICES", "0", "device emulated:0: no CUDA-capable device is detected (cudaErrorNoDevice, 100)"},
                                {"WAGMA_EMULATED_REFUSE", "pin,peer", ""}};
  Processes processes(static_cast<int>(cases.size()));
  processes.start([&](int i) {
    ::setenv(cases[i].name, cases[i].value, 1);
    std::string said;
    try {
      const auto device = emulated_device(0);
      std::byte byte{};
      WAGMA_CHECK(!device->pin(&byte, 1) && emulated::settings().refuse_peer && !emulated::settings().refuse_ipc);
    } catch (const std::invalid_argument& error) {
      said = error.what();
    } catch (const DeviceError& error) {
      said = error.what();
    }
    if (said != cases[i].said) throw std::logic_error(said);
  });
  processes.wait();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (processes.told(static_cast<int>(i)).error[0]) throw std::logic_error(processes.told(static_cast<int>(i)).error);
  }
}

// CUDA is of no use in a process forked from one that has used it, and says so; nor are the threads that the emulated streams are.
void forks_are_refused() {
  Processes processes(1);
  processes.start([](int) {
    const auto device = emulated_device(0);
    const pid_t child = ::fork();
    if (child == 0) ::_exit(has(refusal([&] { device->memory(); }), "initialization error (cudaErrorInitializationError, 3)") ? 7 : 8);
    int status = 0;
    ::waitpid(child, &status, 0);
    WAGMA_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  });
  processes.wait();
  if (processes.told(0).error[0]) throw std::logic_error(processes.told(0).error);
}

// The application's stream never comes to an end: the queue that follows it ends all the same, and leaves behind what is still in use.
void hanging_work_is_left_behind() {
  Processes processes(1);
  processes.start([](int) {
    const auto device = emulated_device(0);
    auto* const application = new EmulatedStream;
    application->sleep(1000);
    const auto begun = Clock::now();
    {
      const auto queue = device->queue(false);
      queue->follow(application->handle());
    }
    const double took = std::chrono::duration<double>(Clock::now() - begun).count();
    WAGMA_CHECK(took > 1.0 && took < 6.0);
  });
  processes.wait();
  if (processes.told(0).error[0]) throw std::logic_error(processes.told(0).error);
}

}  // namespace

int main() {
  ::setenv("WAGMA_EMULATED_DEVICES", "2", 1);
  return run_tests({{"memory_is_shared", memory_is_shared},
                    {"what_is_refused_is_said", what_is_refused_is_said},
                    {"devices_reach_each_other", devices_reach_each_other},
                    {"knobs_are_read", knobs_are_read},
                    {"forks_are_refused", forks_are_refused},
                    {"hanging_work_is_left_behind", hanging_work_is_left_behind}});
}
