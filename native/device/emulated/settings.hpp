// What of the emulated devices can be set: by the environment, read at first use, and by tests.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace wagma::emulated {

struct Settings {
  int devices = 1;                       // WAGMA_EMULATED_DEVICES, 0 to kMostDevices
  std::atomic<std::size_t> memory;       // WAGMA_EMULATED_MEMORY: bytes that this process can have of each device; the machine's memory
  std::atomic<unsigned> delay_us{0};     // WAGMA_EMULATED_DELAY_US: each operation of a stream begins up to this much later
  std::atomic<std::uint64_t> seed{0};    // WAGMA_EMULATED_SEED: of these delays
  // WAGMA_EMULATED_REFUSE, a list with commas: what fails as it does where a container or a machine does not have it.
  std::atomic<bool> refuse_ipc{false};       // "ipc": memory is not shared
  std::atomic<bool> refuse_ipc_open{false};  // "ipc-open": it is, but other processes do not get at it
  std::atomic<bool> refuse_pin{false};       // "pin": memory of the host is not pinned
  std::atomic<bool> refuse_peer{false};      // "peer": no device reaches another one's memory

  static constexpr int kMostDevices = 16;
};

// Throws std::invalid_argument, one line, if the environment has a value that is not allowed.
Settings& settings();

}  // namespace wagma::emulated
