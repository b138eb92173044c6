#include "fuzzer.hpp"

#include <algorithm>
#include <cctype>

namespace wagma::tools {
namespace {

// "wholeness: a sum ..." is a kind by its promise; what a machine refuses, by the words without their numbers and the details.
std::string kind_of(const Violation& violation) {
  const std::string text = violation.what();
  return text.substr(0, text.find(':'));
}

std::string kind_of(const std::exception& refused) {
  std::string text = refused.what();
  text.resize(std::min(text.find(" ("), text.size()));
  std::erase_if(text, [](unsigned char c) { return std::isdigit(c) != 0; });
  return text;
}

}  // namespace

Verdict Judge::once(const Plan& plan, Counts& counts, Log& log) {
  Verdict verdict;
  log.clear();
  std::optional<Run> run;
  try {
    run.emplace(plan, counts, log);
    run->run();
  } catch (const Violation& violation) {
    verdict.kind = kind_of(violation);
    verdict.message = violation.what();
  } catch (const std::exception& refused) {  // an event that a machine refuses, or a defect of this tool: with its seed, too
    verdict.kind = kind_of(refused);
    verdict.message = refused.what();
  }
  verdict.events = log.size();
  verdict.digest = log.digest();
  if (run) delays_.clear();
  if (run && (!verdict.kind.empty() || plan.leaks)) delays_ = run->delays();
  return verdict;
}

Verdict Judge::operator()(const Plan& plan, const Plan& again, Counts& counts) {
  Counts uncounted;
  Verdict second = once(again, uncounted, logs_[1]);
  Verdict first = once(plan, counts, logs_[0]);
  if (logs_[0] == logs_[1] && first.message == second.message) return first;
  const std::size_t index = logs_[0].first_difference(logs_[1]);
  const auto text = [&](const Log& log) { return index < log.size() ? log.text(index) : std::string("nothing, or other states at the end"); };
  first.kind = "determinism";
  first.events = std::min(index + 1, logs_[0].size());
  first.message = "determinism: two runs of one seed differ, first in event " + std::to_string(index) + ": \"" + text(logs_[1]) +
                  "\", then \"" + text(logs_[0]) + "\"";
  return first;
}

FuzzResult fuzz(const FuzzOptions& options) {
  FuzzResult result;
  Judge judge;
  while (result.runs < options.seeds && !result.failure) {
    const std::uint64_t seed = options.first + result.runs;
    const auto draw = [&] {
      Plan drawn = draw_plan(seed, options.mutation, options.two_activators);
      drawn.leaks = options.leaks;
      return drawn;
    };
    const Plan plan = draw();
    const Verdict verdict = judge(plan, draw(), result.counts);
    ++result.runs;
    result.digest = detail::mix64(result.digest ^ verdict.digest);
    if (options.progress) options.progress(result.runs);
    if (verdict.kind.empty()) continue;
    Shrunk small{plan.config, verdict, judge.log(), 0};
    if (options.shrink) {
      small = shrink(plan, small, [&] {
        if (options.progress) options.progress(result.runs);
      });
    }
    FuzzFailure failure{seed, verdict, text_of(plan.config), small.verdict, text_of(small.config), {}, small.attempts};
    for (std::size_t i = 0; i < small.verdict.events; ++i) failure.trace.push_back(small.log.text(i));
    result.failure = std::move(failure);
  }
  return result;
}

}  // namespace wagma::tools
