// What the decision machine answers to every event in given states, those that it has to refuse included, and what the schedule says:
// for tests/test_machine_mutants.py, which holds each answer against the Python machine's, and every mutant's against the machine's.
//
// usage: machine_answers QUESTIONS [ANSWERS]
// QUESTIONS has a line for each of these, ANSWERS (if given) the lines that are expected:
//   machine P S T grouped fixed initiators seed accumulate begin merge_once resident V   all ranks' machines, in their first states
//   rank R                                     a machine as the last ones, of that rank, which may be wrong
//   state M N...                               the M-th machine of all, in that state: every event, with versions from -1 to V
//   schedule P S T grouped fixed initiators seed accumulate begin V   every version from -1 to V
//   drawn P M seed version                     the candidates of one version
//   shape P                                    trees
// Without ANSWERS prints every answer; with them only what differs first, and ends with 1.
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>

#include "wagma/protocol.hpp"

namespace {

using namespace wagma;
using Numbers = std::vector<Version>;

std::string join(const Numbers& numbers) {
  std::string text;
  for (const Version number : numbers) text += (text.empty() ? "" : " ") + std::to_string(number);
  return text;
}

std::string text_of(const Output& output) {
  if (const auto* f = std::get_if<Forward>(&output)) return "F " + join({f->version, f->dimension, f->rank});
  if (const auto* s = std::get_if<Start>(&output)) return "S " + join({s->version, s->buffer, s->target, s->stamp, s->oldest});
  if (const auto* r = std::get_if<Retracted>(&output)) return "R " + join({r->buffer, r->stamp, r->oldest});
  if (const auto* s = std::get_if<Solo>(&output)) return "O " + join({s->version, s->dimension, s->rank});
  const auto& c = std::get<Complete>(output);
  return "C " + join({c.version, c.fresh, c.merged_version, c.buffer});
}

class Answers {
 public:
  explicit Answers(const char* expected) {
    if (expected != nullptr) expected_.emplace(expected);
  }

  bool differ() const { return differ_; }

  void put(const std::string& answer) {
    if (!expected_) {
      std::cout << answer << '\n';
      return;
    }
    if (differ_) return;
    if (std::getline(*expected_, line_) && line_ == answer) return;
    differ_ = true;
    std::cout << "expected: " << line_ << "\nanswered: " << answer << '\n';
  }

  // Whatever it throws is its answer.
  template <class Text>
  void ask(const std::string& question, Text text) {
    try {
      put(question + " -> " + text());
    } catch (const std::exception& error) {
      put(question + " refused: " + error.what());
    }
  }

 private:
  std::optional<std::ifstream> expected_;
  std::string line_;
  bool differ_ = false;
};

Schedule schedule_of(std::istream& line) {
  Schedule s;
  line >> s.world_size >> s.group_size >> s.sync_period >> s.grouped >> s.fixed >> s.initiators >> s.seed >> s.accumulate >> s.begin;
  return s;
}

class Asker {
 public:
  explicit Asker(const char* expected) : answers_(expected) {}

  bool differ() const { return answers_.differ(); }

  void line(const std::string& text) {
    std::istringstream line(text);
    std::string what;
    line >> what;
    if (what == "machine") return machine(line);
    if (what == "rank") return rank(line);
    if (what == "state") return state(line);
    if (what == "schedule") return schedule(line);
    if (what == "drawn") return drawn(line);
    if (what == "shape") return shape(line);
    throw std::runtime_error("no such question: " + text);
  }

 private:
  void machine(std::istream& line) {
    schedule_ = schedule_of(line);
    line >> merge_once_ >> resident_ >> versions_;
    for (int rank = 0; rank < std::max(1, schedule_.world_size); ++rank) make(rank);
  }

  void rank(std::istream& line) {
    int rank = 0;
    line >> rank;
    make(rank);
  }

  void make(int rank) {
    answers_.ask("machine " + std::to_string(rank), [&] {
      machines_.emplace_back(Machine(rank, schedule_, merge_once_, resident_), versions_);
      return about(machines_.back().first);
    });
  }

  static std::string about(const Machine& m) {
    return join(m.state()) + " rank " + join({m.rank(), m.schedule().world_size, m.resident(), m.buffers()}) + " fields " +
           join({m.next_version(), m.executing(), m.activated(), m.arrived(), m.waiting(), m.closed(), m.fresh(), m.live(),
                 m.published(), m.model(), m.merging()}) +
           " done " + join({m.done(), m.awaits_readers()});
  }

  void state(std::istream& line) {
    std::size_t machine = 0;
    line >> machine;
    state_.clear();
    for (Version number = 0; line >> number;) state_.push_back(number);
    machine_ = &machines_.at(machine).first;
    const Version versions = machines_[machine].second;
    answers_.ask("state", [&] {
      machine_->restore(state_);
      return about(*machine_);
    });
    using M = Machine;
    event("read_done", &M::read_done);
    event("merge_done", &M::merge_done);
    event("retract", &M::retract);
    event("close", &M::close);
    for (Version version = -1; version <= versions; ++version) {
      event("arrive", &M::arrive, version);
      event("exec_done", &M::exec_done, version);
      event("finish", &M::finish, version);
    }
    const int dimensions = static_cast<int>(machine_->state().size() - 20) / 2;
    for (int dimension = -1; dimension <= dimensions; ++dimension) {
      for (Version version = 0; version <= versions; ++version) {
        event("activation", &M::activation, version, dimension);
        event("solo", &M::solo, version, dimension);
      }
    }
  }

  template <class... Parameters, class... Arguments>
  void event(const char* name, Outputs (Machine::*method)(Parameters...), Arguments... arguments) {
    answers_.ask(name + (" " + join({static_cast<Version>(arguments)...})), [&] {
      machine_->restore(state_);
      Outputs outputs;
      try {
        outputs = (machine_->*method)(arguments...);
      } catch (const ProtocolError& error) {
        return std::string(machine_->state() == state_ ? "refused: " : "refused, but it has changed: ") + error.what();
      }
      std::string text;
      for (const Output& output : outputs) text += text_of(output) + ", ";
      return text + "then " + join(machine_->state());
    });
  }

  void schedule(std::istream& line) {
    const Schedule s = schedule_of(line);
    Version versions = 0;
    line >> versions;
    answers_.ask("schedule", [&] {
      s.check();
      return join({s.first(), s.selective()});
    });
    for (Version version = 0; version <= versions; ++version) {
      answers_.ask("version " + std::to_string(version), [&] {
        s.check();
        std::string text = join({s.next(version - 1), s.next(version), s.previous(version), s.is_sync(version)});
        for (const int candidate : s.candidates(version)) text += " c" + std::to_string(candidate);
        for (int rank = 0; rank < s.world_size; ++rank) {
          const Group group = s.group(rank, version);
          text += s.may_activate(rank, version) ? " may: " : " may not: ";
          text += join({group.begin(), group.end()});
        }
        return text;
      });
    }
  }

  void drawn(std::istream& line) {
    Schedule s;
    Version version = 0;
    line >> s.world_size >> s.initiators >> s.seed >> version;
    answers_.ask("drawn", [&] {
      std::string text;
      for (const int candidate : s.candidates(version)) text += " " + std::to_string(candidate);
      return text;
    });
  }

  void shape(std::istream& line) {
    int world_size = 0;
    line >> world_size;
    answers_.ask("shape " + std::to_string(world_size), [&] {
      std::string text = join({is_power_of_two(world_size)});
      if (world_size < 1) return text;
      text += " dimensions " + join({dimensions(world_size)});
      for (int rank = 0; rank < world_size; ++rank) {
        for (int dimension = 0; dimension < dimensions(world_size); ++dimension) {
          text += " " + std::to_string(neighbour(world_size, rank, dimension));
        }
      }
      text += " " + join({group_of(world_size, world_size, 3, 0).back()});
      for (const auto& [into, from] : association(world_size)) text += ", " + join({into, from});
      return text;
    });
  }

  Answers answers_;
  Schedule schedule_;
  bool merge_once_ = false, resident_ = false;
  Version versions_ = 0;
  std::vector<std::pair<Machine, Version>> machines_;  // and the versions that it is asked about
  Machine* machine_ = nullptr;
  Numbers state_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  std::ios::sync_with_stdio(false);
  try {
    Asker asker(argc > 2 ? argv[2] : nullptr);
    std::ifstream questions(argv[1]);
    for (std::string text; !asker.differ() && std::getline(questions, text);) asker.line(text);
    return asker.differ() ? 1 : 0;
  } catch (const std::exception& error) {  // of a mutant, whose states or machines are not there
    std::cout << "cannot go on: " << error.what() << '\n';
    return 1;
  }
}
