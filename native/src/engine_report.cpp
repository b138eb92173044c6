// What an engine says of itself: in the error of a wait that reached its limit, when nothing has moved for long (the watchdog), and on a
// signal. It goes to standard error directly and not through the application: whatever holds that up may hold up a callback, too.
#include <csignal>
#include <cstdio>
#include <sstream>

#include "drive_until.hpp"
#include "wagma/report.hpp"

namespace wagma {

namespace {

// Counts the signals. A handler may do next to nothing, so it does only this, and progress threads look once a second.
std::atomic<unsigned> requests{0};
static_assert(std::atomic<unsigned>::is_always_lock_free, "a signal handler must not wait");

// Who handled the signal before: MPICH does, and needs to hear of it. Written once, before the handler that reads it is installed. Without
// `installed` a second report_on, which may find a handler in its place that passes on to this one, would make the two call each other for
// ever.
struct sigaction before {};
std::atomic<bool> installed{false};

void count_and_pass_on(int signal, siginfo_t* info, void* context) {
  requests.fetch_add(1);
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  }
}

std::string listed(const std::vector<int>& ranks) {
  constexpr std::size_t kShown = 16;
  std::ostringstream text;
  text << (ranks.size() == 1 ? "rank " : "ranks ");
  for (std::size_t i = 0; i < std::min(ranks.size(), kShown); ++i) text << (i ? ", " : "") << ranks[i];
  if (ranks.size() > kShown) text << " and " << ranks.size() - kShown << " more";
  return text.str();
}

std::string or_none(Version version) { return version == kNone ? "none" : std::to_string(version); }

double seconds_since(Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); }

}  // namespace

unsigned reports_asked() { return requests.load(); }

bool report_on(int signal) {
  struct sigaction present {};
  if (installed.load() || ::sigaction(signal, nullptr, &present) != 0) return false;
  if (!(present.sa_flags & SA_SIGINFO) && present.sa_handler == SIG_IGN) return false;
  if (installed.exchange(true)) return false;
  before = present;
  struct sigaction handler {};
  handler.sa_sigaction = count_and_pass_on;
  handler.sa_flags = SA_RESTART | SA_SIGINFO;
  ::sigemptyset(&handler.sa_mask);
  return ::sigaction(signal, &handler, nullptr) == 0;
}

// The caller drives.
std::string Engine::timeout_message() {
  const std::vector<int> missing = running_ ? transport_->missing() : std::vector<int>{};
  std::lock_guard lock(mutex_);
  std::ostringstream text;
  text << "rank " << rank_ << ": ";
  const Version version = machine_.waiting() != kNone ? machine_.waiting() : machine_.executing();
  if (machine_.closed()) {
    text << "closed after version " << or_none(machine_.arrived()) << ", and heard nothing for " << config_.timeout_s
         << " s while not all ranks have closed";
  } else {
    text << "version " << version << (config_.schedule.is_sync(version) ? " (sync of " : " (group of ")
         << listed(config_.schedule.group(rank_, version)) << ") is not complete after " << config_.timeout_s << " s";
  }
  if (!missing.empty()) text << "; version " << machine_.executing() << " lacks the part of " << listed(missing);
  text << " (next version " << machine_.next_version() << ", executing " << or_none(machine_.executing()) << ", activated "
       << or_none(machine_.activated()) << ")";
  return text.str();
}

// One line: what this rank's application does, what it executes and who is missing there, what waits for it. The caller drives.
std::string Engine::standing() {
  const std::vector<int> missing = running_ ? transport_->missing() : std::vector<int>{};
  const std::string moved = running_ ? transport_->standing() : std::string();
  std::lock_guard lock(mutex_);
  std::ostringstream text;
  text.precision(3);
  text << "rank " << rank_ << " of " << transport_->world_size() << " (" << transport_->name() << models_->suffix() << "): ";
  const auto named = [&](Version version) {
    return "version " + std::to_string(version) + (config_.schedule.is_sync(version) ? ", a sync," : "");
  };
  const Version waiting = machine_.waiting(), next = machine_.next_version(), arrived = machine_.arrived();
  const double since = seconds_since(since_);
  if (moving_) {
    text << "waits in iteration " << moving_->iteration << " for its device, which has not " << moving_->what << " for " << since << " s";
  } else if (machine_.closed()) {
    text << "closed after version " << or_none(arrived);
    if (closing_ && !finished_ && !finishing_) text << ", and has served the others, who have not all closed, for " << since << " s";
  } else if (waiting != kNone) {
    text << "has waited in " << named(waiting) << " for " << since << " s";
  } else if (merging_pending_) {
    text << "has merged the result of version " << or_none(arrived) << " for " << since << " s";
  } else {
    text << "has been in its own program, after version " << or_none(arrived) << ", for " << since << " s";
  }
  if (running_) {
    text << "; executes version " << running_->start.version << " of " << listed(running_->record.members);
    if (!moved.empty()) {
      text << ", " << moved;
      if (!missing.empty()) text << ", and data of " << listed(missing) << " has not come";
    } else if (!missing.empty()) {
      text << ", which " << listed(missing) << (missing.size() == 1 ? " has" : " have") << " not begun";
    }
  } else if (machine_.activated() >= next && config_.schedule.is_sync(next) && arrived < next && !machine_.closed()) {
    text << "; " << named(next) << " waits for this rank to arrive";
  } else if (waiting > machine_.activated() && config_.schedule.selective()) {
    text << "; version " << waiting << " lacks an activation, which is for " << listed(config_.schedule.candidates(waiting));
  } else {
    text << "; executes nothing";
  }
  text << "; activated up to version " << or_none(machine_.activated()) << "; nothing has moved for " << seconds_since(last_sign_) << " s";
  return text.str();
}

// Whether something is due that does not come: only then silence means anything. A rank that computes owes nobody anything until a sync
// waits for it.
bool Engine::is_pending() {
  return moving_ || machine_.waiting() != kNone || machine_.executing() != kNone || machine_.activated() >= machine_.next_version() ||
         (closing_ && !finished_);
}

// By whoever drives, some times a second while the application waits, about once a second otherwise.
void Engine::watch() {
  const unsigned asked = requests.load();
  const auto now = Clock::now();
  {
    std::lock_guard lock(mutex_);
    const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(config_.watchdog_s));
    const bool silent = config_.watchdog_s > 0 && is_pending() && now - std::max(last_sign_, reported_at_) >= limit;
    if (asked == reports_asked_ && !silent) return;
    reports_asked_ = asked;
    reported_at_ = now;
  }
  std::fprintf(stderr, "wagma: %s\n", standing().c_str());
}

}  // namespace wagma
