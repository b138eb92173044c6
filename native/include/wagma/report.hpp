// Reports on a signal, for all engines of the process.
#pragma once

namespace wagma {

// From now on each engine writes one line about itself to standard error, within about a second of `signal`, and who handled it before still
// does. False, and nothing is changed, if that is so already, or if the signal is ignored.
bool report_on(int signal);

// Such signals so far.
unsigned reports_asked();

}  // namespace wagma
