// Operators that reduce axes. Sums are taken in float64 and rounded to float32 once, for float32 sums in any order.
#include <algorithm>

#include "standin.h"

namespace {

bool is_known(const Tensor *t) { return is_floating(t) || is_one_of(t, {BOOL, U8, I8, I16, I32, I64}); }

// Which axes are reduced: those named, or all if none is; empty where one is out of range.
std::vector<bool> axes_of(const Tensor *a, const IntArray *dims) {
  const int64_t rank = int64_t(a->dims.size());
  std::vector<bool> reduced(size_t(rank), !dims || dims->values.empty());
  if (!dims) return reduced;
  for (int64_t axis : dims->values) {
    if (axis < -std::max<int64_t>(rank, 1) || axis >= std::max<int64_t>(rank, 1)) return {};
    if (rank) reduced[size_t(axis < 0 ? axis + rank : axis)] = true;
  }
  return reduced;
}

bool in_range(const Tensor *a, const IntArray *dims) { return a->dims.empty() || !axes_of(a, dims).empty(); }

bool result_fits(const Tensor *a, const IntArray *dims, bool keep, const Tensor *out) {
  const std::vector<bool> reduced = axes_of(a, dims);
  Dims expected;
  for (size_t k = 0; k < a->dims.size(); k++)
    if (!reduced[k]) expected.push_back(a->dims[k]);
    else if (keep) expected.push_back(1);
  return out->dims == expected;
}

// For every element of a in C order, the index of the result that it belongs to.
template <typename F>
void each(const Tensor *a, const std::vector<bool> &reduced, F visit) {
  const size_t rank = a->dims.size();
  Dims steps(rank, 0), at(rank, 0);
  for (size_t k = rank, step = 1; k-- > 0;)
    if (!reduced[k]) {
      steps[k] = int64_t(step);
      step *= size_t(a->dims[k]);
    }
  int64_t target = 0;
  const int64_t n = elements(a->dims);
  for (int64_t i = 0; i < n; i++) {
    visit(size_t(i), size_t(target));
    for (size_t k = rank; k-- > 0;) {
      target += steps[k];
      if (++at[k] < a->dims[k]) break;
      target -= steps[k] * a->dims[k];
      at[k] = 0;
    }
  }
}

void sum(const Tensor *a, const IntArray *dims, bool mean, Tensor *out) {
  const std::vector<bool> reduced = axes_of(a, dims);
  const size_t n = size_t(elements(out->dims));
  if (!is_floating(a) && !is_floating(out)) {
    std::vector<int64_t> values = integers(a), total(n, 0);
    each(a, reduced, [&](size_t i, size_t j) { total[j] += values[i]; });
    return store(out, total);
  }
  const std::vector<float> values = floats(a);
  std::vector<double> total(n, 0);
  each(a, reduced, [&](size_t i, size_t j) { total[j] += values[i]; });
  const double count = mean ? double(elements(a->dims)) / double(n) : 1;
  std::vector<float> result(n);
  for (size_t j = 0; j < n; j++) result[j] = float(total[j] / count);
  store(out, result);
}

template <typename F>
void fold(const Tensor *a, const IntArray *dims, Tensor *out, float start, F f) {
  const std::vector<float> values = floats(a);
  std::vector<float> result(size_t(elements(out->dims)), start);
  each(a, axes_of(a, dims), [&](size_t i, size_t j) { result[j] = f(result[j], values[i]); });
  store(out, result);
}

float larger(float x, float y) { return std::isnan(x) || x > y ? x : y; }
float smaller(float x, float y) { return std::isnan(x) || x < y ? x : y; }

}  // namespace

#define ACLNN_SUM(NAME, PAGE, MEAN)                                                                               \
  ACLNN(NAME, PAGE, const Tensor *a, const IntArray *dims, bool keep, int dtype, Tensor *out) {                   \
    LAUNCH({a}, {out});                                                                                           \
    NEED(is_known(a), "self is a float of 16 or 32 bits, an integer or bool");                                    \
    NEED(in_range(a, dims), "axes are axes of self");                                                             \
    NEED(out->dtype == dtype, "out has the dtype asked for");                                                     \
    NEED(result_fits(a, dims, keep, out), "out has the shape of self without the axes that are reduced");         \
    return READY([=] { sum(a, dims, MEAN, out); });                                                               \
  }
#define ACLNN_TRUTH(NAME, PAGE, START, EXPRESSION)                                                                \
  ACLNN(NAME, PAGE, const Tensor *a, const IntArray *dims, bool keep, Tensor *out) {                              \
    LAUNCH({a}, {out});                                                                                           \
    NEED(is_known(a), "self is a float of 16 or 32 bits, an integer or bool");                                    \
    NEED(out->dtype == BOOL, "out is bool");                                                                      \
    NEED(in_range(a, dims), "axes are axes of self");                                                             \
    NEED(result_fits(a, dims, keep, out), "out has the shape of self without the axes that are reduced");         \
    return READY([=] { fold(a, dims, out, START, [](float x, float y) { return float(EXPRESSION); }); });         \
  }
#define ACLNN_EXTREME(NAME, PAGE, START, FUNCTION)                                                                \
  ACLNN(NAME, PAGE, const Tensor *a, const IntArray *dims, bool keep, Tensor *out) {                              \
    LAUNCH({a}, {out});                                                                                           \
    NEED(is_floating(a), "self is float32, float16 or bfloat16");                                                 \
    NEED(a->dtype == out->dtype, "out has the dtype of self");                                                    \
    NEED(in_range(a, dims), "axes are axes of self");                                                             \
    NEED(result_fits(a, dims, keep, out), "out has the shape of self without the axes that are reduced");         \
    return READY([=] { fold(a, dims, out, START, FUNCTION); });                                                   \
  }
#define ACLNN_EXTREME_OF_ALL(NAME, PAGE, START, FUNCTION)                                                         \
  ACLNN(NAME, PAGE, const Tensor *a, Tensor *out) {                                                               \
    LAUNCH({a}, {out});                                                                                           \
    NEED(is_floating(a), "self is float32, float16 or bfloat16");                                                 \
    NEED(a->dtype == out->dtype && elements(out->dims) == 1, "out is one element of the dtype of self");          \
    return READY([=] { fold(a, nullptr, out, START, FUNCTION); });                                                \
  }

ACLNN_SUM(ReduceSum, "ops-math math/reduce_sum/docs/aclnnReduceSum.md", false)
ACLNN_SUM(Mean, "ops-math math/reduce_mean/docs/aclnnMean.md", true)
ACLNN_TRUTH(All, "ops-math math/reduce_all/docs/aclnnAll.md", 1, x != 0 && y != 0)
ACLNN_TRUTH(Any, "ops-math math/reduce_any/docs/aclnnAny.md", 0, x != 0 || y != 0)
ACLNN_EXTREME(Amax, "ops-math math/reduce_max/docs/aclnnAmax.md", -INFINITY, larger)
ACLNN_EXTREME(Amin, "ops-math math/reduce_min/docs/aclnnAmin.md", INFINITY, smaller)
ACLNN_EXTREME_OF_ALL(Max, "ops-math math/reduce_max/docs/aclnnMax.md", -INFINITY, larger)
ACLNN_EXTREME_OF_ALL(Min, "ops-math math/reduce_min/docs/aclnnMin.md", INFINITY, smaller)
