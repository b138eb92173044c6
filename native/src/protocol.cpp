// Line by line the machine of wagma/core/protocol.py, where the rules and the reasons stand.
#include "wagma/protocol.hpp"

#include <algorithm>
#include <array>

namespace wagma {
namespace {

// Tests of torn reads must be seen to fail: this build gives every role one and the same buffer. Never in a shipped
// library.
#ifdef WAGMA_TEST_SINGLE_BUFFER
constexpr bool kSingleBuffer = true;
#else
constexpr bool kSingleBuffer = false;
#endif

}  // namespace

Machine::Machine(int rank, Schedule schedule, bool merge_once, bool resident)
    : rank_(rank), schedule_(schedule), merge_once_(merge_once), resident_(resident), next_version_(0) {
  schedule_.check();
  if (rank < 0 || rank >= schedule_.world_size) {
    throw std::invalid_argument("rank = " + std::to_string(rank) + ": must be from 0 to " +
                                std::to_string(schedule_.world_size - 1));
  }
  if (resident && schedule_.accumulate) {
    throw std::invalid_argument("rank " + std::to_string(rank) +
                                ": resident = True: must be False where contributions accumulate");
  }
  next_version_ = schedule_.first();
  forwarded_.assign(static_cast<std::size_t>(dimensions(schedule_.world_size)), kNone);
  told_ = forwarded_;
  arrived_ = schedule_.begin - 1;
  if (schedule_.accumulate) {
    published_ = kNone;
  } else {
    stamp_ = oldest_ = arrived_;
  }
  if constexpr (kSingleBuffer) published_ = live_;
}

Outputs Machine::arrive(Version version) {
  if (closed_) reject("arrive", version, "the rank has closed");
  if (waiting_ != kNone) reject("arrive", version, "the rank still waits in version " + std::to_string(waiting_));
  if (merging_ != kNone) reject("arrive", version, "the last result is still being merged");
  const Version expected = schedule_.next(arrived_);
  if (version != expected) reject("arrive", version, "the next version is " + std::to_string(expected));
  if (schedule_.accumulate && published_ != kNone) {
    reject("arrive", version, "the gradient of version " + std::to_string(stamp_) + " has to be retracted first");
  }
  if (live_ == kNone) reject("arrive", version, "no buffer is live, peers still read");
  published_ = live_;
  live_ = kNone;
  stamp_ = arrived_ = waiting_ = version;
  if (!schedule_.accumulate || schedule_.is_sync(version) || oldest_ == kNone) oldest_ = version;
  fresh_ = version >= next_version_;
  Outputs outputs;
  if (!fresh_) {
    if (executing_ != kNone) {
      merge_at_ = executing_;
    } else {
      complete(schedule_.previous(next_version_), outputs);
      reserve();
    }
    return outputs;
  }
  merge_at_ = version;
  if (activates(version)) {
    activated_ = version;
    forward(version, 0, outputs);
  }
  start(outputs);
  return outputs;
}

Outputs Machine::activation(Version version, int dimension) {
  if (dimension < 0 || dimension >= static_cast<int>(forwarded_.size())) {
    reject("activation", version,
           "dimension " + std::to_string(dimension) + " is not below " + std::to_string(forwarded_.size()));
  }
  Outputs outputs;
  forward(version, dimension + 1, outputs);
  if (version > activated_) {
    activated_ = version;
    start(outputs);
  }
  return outputs;
}

Outputs Machine::solo(Version version, int dimension) {
  if (dimension < 0 || dimension >= static_cast<int>(told_.size())) {
    reject("solo", version,
           "dimension " + std::to_string(dimension) + " is not below " + std::to_string(told_.size()));
  }
  Outputs outputs;
  tell(version, dimension + 1, outputs);
  if (activates(waiting_)) {
    activated_ = waiting_;
    forward(waiting_, 0, outputs);
    start(outputs);
  }
  return outputs;
}

Outputs Machine::exec_done(Version version) {
  if (version != executing_ || executing_ == kNone) {
    reject("exec_done", version, "version " + std::to_string(executing_) + " is executing");
  }
  executing_ = kNone;
  result_ = target_;
  target_ = kNone;
  if (schedule_.is_sync(version)) {
    if (!schedule_.accumulate) {
      published_ = result_;
      stamp_ = oldest_ = version;
    } else if (closed_) {
      model_ = result_;
    }
  }
  Outputs outputs;
  if (merge_at_ == version) complete(version, outputs);
  start(outputs);
  return outputs;
}

Outputs Machine::read_done() {
  if (reading_ == kNone) reject("read_done", executing_, "no contribution is being read");
  reading_ = kNone;
  Outputs outputs;
  start(outputs);
  reserve();
  return outputs;
}

Outputs Machine::merge_done() {
  if (merging_ == kNone) reject("merge_done", arrived_, "nothing is being merged");
  merging_ = kNone;
  reserve();
  return {};
}

Outputs Machine::retract() {
  if (!schedule_.accumulate) reject("retract", arrived_, "contributions do not accumulate");
  if (closed_) reject("retract", arrived_, "the rank has closed");
  if (waiting_ != kNone) reject("retract", arrived_, "the rank still waits in version " + std::to_string(waiting_));
  if (merging_ != kNone) reject("retract", arrived_, "the last result is still being merged");
  if (published_ == kNone) return {};
  merging_ = published_;
  published_ = kNone;
  const Version stamp = stamp_;
  stamp_ = kNone;
  return {Retracted{static_cast<int>(merging_), stamp, oldest_}};
}

Outputs Machine::close() {
  if (closed_) reject("close", arrived_, "the rank has closed already");
  if (waiting_ != kNone) reject("close", arrived_, "the rank still waits in version " + std::to_string(waiting_));
  if (merging_ != kNone) reject("close", arrived_, "the last result is still being merged");
  if (schedule_.accumulate) {
    if (live_ == kNone) reject("close", arrived_, "no buffer is live, peers still read");
    model_ = live_;
  }
  closed_ = 1;
  Outputs outputs;
  if (!resident_) live_ = kNone;  // else the application's model stays where it is
  if (schedule_.selective()) tell(schedule_.next(arrived_), 0, outputs);
  start(outputs);
  return outputs;
}

Outputs Machine::finish(Version version) {
  if (!closed_) reject("finish", version, "the rank has not closed");
  if (last_ != kNotFinishing) reject("finish", version, "the run already ends with version " + std::to_string(last_));
  last_ = version;
  activated_ = std::max(activated_, version);
  Outputs outputs;
  start(outputs);
  return outputs;
}

bool Machine::done() const {
  return last_ != kNotFinishing && next_version_ > last_ && executing_ == kNone && reading_ == kNone;
}

std::vector<Version> Machine::state() const {
  std::vector<Version> state{next_version_, executing_, activated_, arrived_, waiting_,   fresh_, merge_at_,
                             merged_,       stamp_,     oldest_,    closed_,  last_,      solo_from_, live_,
                             published_,    reading_,   target_,    result_,  merging_,   model_};
  state.insert(state.end(), forwarded_.begin(), forwarded_.end());
  state.insert(state.end(), told_.begin(), told_.end());
  return state;
}

void Machine::restore(const std::vector<Version>& state) {
  const std::array fields{&next_version_, &executing_, &activated_, &arrived_, &waiting_,   &fresh_, &merge_at_,
                          &merged_,       &stamp_,     &oldest_,    &closed_,  &last_,      &solo_from_, &live_,
                          &published_,    &reading_,   &target_,    &result_,  &merging_,   &model_};
  if (state.size() != fields.size() + 2 * forwarded_.size()) {
    throw std::invalid_argument("state of " + std::to_string(state.size()) + " integers: must be " +
                                std::to_string(fields.size() + 2 * forwarded_.size()));
  }
  auto value = state.begin();
  for (Version* field : fields) *field = *value++;
  for (auto* list : {&forwarded_, &told_}) {
    for (Version& item : *list) item = *value++;
  }
}

bool Machine::activates(Version version) const {
  if (version <= activated_) return false;
  return schedule_.may_activate(rank_, version) || (solo_from_ != kNone && solo_from_ <= version);
}

void Machine::forward(Version version, int lowest, Outputs& outputs) {
  for (int dimension = lowest; dimension < static_cast<int>(forwarded_.size()); ++dimension) {
    Version& forwarded = forwarded_[static_cast<std::size_t>(dimension)];
    if (forwarded >= version) continue;
    forwarded = version;
    outputs.push_back(Forward{version, dimension, neighbour(schedule_.world_size, rank_, dimension)});
  }
}

void Machine::tell(Version version, int lowest, Outputs& outputs) {
  if (solo_from_ == kNone || version < solo_from_) solo_from_ = version;
  for (int dimension = lowest; dimension < static_cast<int>(told_.size()); ++dimension) {
    Version& told = told_[static_cast<std::size_t>(dimension)];
    if (told != kNone && told <= version) continue;
    told = version;
    outputs.push_back(Solo{version, dimension, neighbour(schedule_.world_size, rank_, dimension)});
  }
}

void Machine::start(Outputs& outputs) {
  const Version version = next_version_;
  if (version > activated_ || executing_ != kNone || reading_ != kNone) return;
  Version stamp = kNone, oldest = kNone;
  if (schedule_.is_sync(version) && arrived_ < version) {
    if (!closed_) return;
    reading_ = schedule_.accumulate ? model_ : published_;
    stamp = oldest = version;
  } else if (published_ != kNone) {  // else null: the state keeps the `oldest` of what has been retracted
    reading_ = published_;
    stamp = stamp_;
    oldest = oldest_;
    if (schedule_.accumulate) published_ = stamp_ = oldest_ = kNone;
  }
  executing_ = version;
  next_version_ = schedule_.next(version);
  result_ = kNone;
  target_ = free_buffer();
  outputs.push_back(Start{version, static_cast<int>(reading_), static_cast<int>(target_), stamp, oldest});
}

void Machine::complete(Version version, Outputs& outputs) {
  merge_at_ = kNone;
  if (merge_once_ && version <= merged_) {
    outputs.push_back(Complete{waiting_, fresh_ != 0, kNone, static_cast<int>(kNone)});
  } else {
    merging_ = result_;
    merged_ = version;
    outputs.push_back(Complete{waiting_, fresh_ != 0, version, static_cast<int>(result_)});
  }
  waiting_ = kNone;
  if (!resident_) return;
  if (fresh_ && !schedule_.is_sync(version)) {
    live_ = result_;
    result_ = kNone;
  } else {
    live_ = free_buffer();
  }
}

void Machine::reserve() {
  if (awaits_readers()) live_ = spare_buffer();
}

Version Machine::spare_buffer() const {
  if constexpr (kSingleBuffer) return 0;
  for (Version buffer = 0; buffer < buffers(); ++buffer) {
    if (buffer != live_ && buffer != published_ && buffer != reading_ && buffer != target_ && buffer != result_ &&
        buffer != merging_ && buffer != model_) {
      return buffer;
    }
  }
  return kNone;
}

Version Machine::free_buffer() const {
  const Version buffer = spare_buffer();
  if (buffer != kNone) return buffer;
  std::string held;
  for (const Version role : {live_, published_, reading_, target_, result_, merging_, model_}) {
    held += (held.empty() ? "" : ", ") + std::to_string(role);
  }
  throw ProtocolError("rank " + std::to_string(rank_) + ": no free buffer among " + std::to_string(buffers()) +
                      " (roles (" + held + "))");
}

void Machine::reject(const char* event, Version version, const std::string& why) const {
  throw ProtocolError("rank " + std::to_string(rank_) + ": " + event + "(" + std::to_string(version) +
                      ") is not allowed: " + why);
}

}  // namespace wagma
