// Command lines of the form `--name value` and `--flag`; anything unknown is an error, which ends a tool with exit
// status 2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace wagma::tools {

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Options {
 public:
  Options(int argc, char** argv, const std::set<std::string>& named, const std::set<std::string>& flags) {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      if (flags.contains(name)) {
        values_.emplace(name, "");
      } else if (!named.contains(name)) {
        throw UsageError("unknown option '" + name + "'");
      } else if (++i == argc) {
        throw UsageError("option '" + name + "' needs a value");
      } else {
        values_.insert_or_assign(name, argv[i]);
      }
    }
  }

  bool has(const std::string& name) const { return values_.contains(name); }

  std::string text(const std::string& name, const std::string& otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }

  std::int64_t integer(const std::string& name, std::int64_t otherwise) const {
    return has(name) ? parse(name, values_.at(name)) : otherwise;
  }

  // "A<separator>B<separator>C" as integers.
  std::vector<std::int64_t> integers(const std::string& name, char separator, const std::string& otherwise) const {
    const std::string all = text(name, otherwise);
    std::vector<std::int64_t> numbers;
    for (std::size_t start = 0; start <= all.size();) {
      const std::size_t end = std::min(all.find(separator, start), all.size());
      numbers.push_back(parse(name, all.substr(start, end - start)));
      start = end + 1;
    }
    return numbers;
  }

 private:
  static std::int64_t parse(const std::string& name, const std::string& text) {
    std::size_t used = 0;
    std::int64_t value = 0;
    try {
      value = std::stoll(text, &used);
    } catch (const std::logic_error&) {
      used = 0;
    }
    if (used == 0 || used != text.size())
      throw UsageError("option '" + name + "' = '" + text + "': must be an integer");
    return value;
  }

  std::map<std::string, std::string> values_;
};

}  // namespace wagma::tools
