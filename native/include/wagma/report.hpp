// Reports on a signal, for all engines of the process.
#pragma once

namespace wagma {

// From now on each engine writes one line about itself to standard error, within about a second of `signal`. False, and nothing is
// changed, if the program handles or ignores that signal already.
bool report_on(int signal);

// Such signals so far.
unsigned reports_asked();

}  // namespace wagma
