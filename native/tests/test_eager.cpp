// Gradients that accumulate: eager_runs.hpp says how that is checked.
#include "eager_runs.hpp"

using namespace wagma::testing;
using namespace wagma::testing::eager;

int main() {
  return run_tests({{"solo", [] { every_gradient_once({0, 0, {40, 40, 40, 40}, 21}); }},
                    {"majority", [] { every_gradient_once({1, 0, {40, 40, 40, 40}, 22}); }},
                    {"two candidates", [] { every_gradient_once({2, 6, {40, 40, 40, 40}, 23}); }},
                    {"solo, uneven ends", [] { every_gradient_once({0, 5, {40, 12, 31, 3}, 24}); }},
                    {"majority, uneven ends", [] { every_gradient_once({1, 4, {9, 40, 0, 33}, 25}); }}});
}
