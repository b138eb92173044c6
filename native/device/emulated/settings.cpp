#include "settings.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

namespace wagma::emulated {

namespace {

std::uint64_t number(const char* name, std::uint64_t otherwise, std::uint64_t most) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  std::uint64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error == std::errc{} && rest == end && value <= most) return value;
  throw std::invalid_argument(std::string(name) + " = " + text + ": must be a whole number from 0 to " + std::to_string(most));
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = std::min(text.find_first_not_of(' '), text.size());
  return text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
}

void refuse(Settings& settings, std::string_view what) {
  if (what == "ipc") {
    settings.refuse_ipc = settings.refuse_ipc_open = true;
  } else if (what == "ipc-open") {
    settings.refuse_ipc_open = true;
  } else if (what == "pin") {
    settings.refuse_pin = true;
  } else if (what == "peer") {
    settings.refuse_peer = true;
  } else {
    throw std::invalid_argument("WAGMA_EMULATED_REFUSE = " + std::string(what) + ": must be a list of ipc, ipc-open, pin, peer");
  }
}

// Never destroyed: streams whose threads end with the process still look at it.
Settings* read() {
  const auto read_memory = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  auto* settings = new Settings;
  try {
    settings->devices = static_cast<int>(number("WAGMA_EMULATED_DEVICES", 1, Settings::kMostDevices));
    settings->memory = number("WAGMA_EMULATED_MEMORY", read_memory, std::numeric_limits<std::int64_t>::max());
    settings->delay_us = static_cast<unsigned>(number("WAGMA_EMULATED_DELAY_US", 0, 10'000'000));
    settings->seed = number("WAGMA_EMULATED_SEED", 0, std::numeric_limits<std::int64_t>::max());
    const char* text = std::getenv("WAGMA_EMULATED_REFUSE");
    for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      refuse(*settings, trimmed(rest.substr(0, comma)));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  } catch (...) {
    delete settings;
    throw;
  }
  return settings;
}

}  // namespace

Settings& settings() {
  static Settings* const only = read();
  return *only;
}

}  // namespace wagma::emulated
