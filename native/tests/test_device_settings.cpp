// What the environment says of the emulated devices, which is read once: each value that is not allowed is named, and then those that are apply.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../device/emulated/settings.hpp"
#include "ranks.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

std::string refused() {
  try {
    emulated::settings();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

void nonsense_is_named() {
  for (const char* name : {"WAGMA_EMULATED_DEVICES", "WAGMA_EMULATED_MEMORY", "WAGMA_EMULATED_DELAY_US", "WAGMA_EMULATED_SEED"}) {
    for (const char* text : {"x", "-1", "1 ", "99999999999999999999"}) {
      ::setenv(name, text, 1);
      WAGMA_CHECK(refused().starts_with(std::string(name) + " = " + text + ": must be a whole number from 0 to "));
    }
    ::unsetenv(name);
  }
  for (const char* text : {"foo", "ipc,foo", "pin, foo ", "i pc"}) {
    ::setenv("WAGMA_EMULATED_REFUSE", text, 1);
    const std::string named = *text == 'i' && text[1] == ' ' ? "i pc" : "foo";
    WAGMA_CHECK(refused() == "WAGMA_EMULATED_REFUSE = " + named + ": must be a list of ipc, ipc-open, pin, peer");
  }
}

void a_list_may_have_spaces() {
  ::setenv("WAGMA_EMULATED_REFUSE", " ipc-open, pin ", 1);
  const emulated::Settings& found = emulated::settings();
  WAGMA_CHECK(found.refuse_ipc_open && found.refuse_pin && !found.refuse_ipc && !found.refuse_peer);
}

}  // namespace

int main() { return run_tests({{"nonsense is named", nonsense_is_named}, {"a list may have spaces", a_list_may_have_spaces}}); }
