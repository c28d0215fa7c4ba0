// What the parts of the stand-in for CANN share: settings, tensors, launches and the trace.
//
// An operator is written as
//
//   ACLNN(Silu, "ops-nn activation/silu/docs/aclnnSilu.md", const Tensor *x, Tensor *out) {
//     LAUNCH({x}, {out});
//     NEED(is_floating(x), "x is float32, float16 or bfloat16");
//     return READY([=] { map(x, out, [](float v) { return v / (1 + std::exp(-v)); }); });
//   }
//
// NEED gives the rules of the operator's page; one that is broken ends the launch with its sentence, and
// `standin.py` lists them all from the source. `READY` takes what computes, which plan mode never calls.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

enum Dtype { F32 = 0, F16 = 1, I8 = 2, I32 = 3, U8 = 4, I16 = 6, I64 = 9, F64 = 11, BOOL = 12, BF16 = 27 };

using Dims = std::vector<int64_t>;

struct Tensor {
  Dims dims, strides;  // strides in elements
  int64_t offset;      // of the first element, in elements
  int dtype, format;
  char *data;
};
struct Scalar {
  double number;    // its value, whatever its dtype
  int64_t integer;  // the same without rounding, where its dtype is an integer
  int dtype;
};
struct IntArray { Dims values; };
struct FloatArray { std::vector<float> values; };
struct BoolArray { std::vector<uint8_t> values; };
struct TensorList { std::vector<Tensor *> values; };

// The settings, from the environment: STANDIN_MODE (compute or plan), STANDIN_PRODUCT, STANDIN_MEMORY (GB),
// STANDIN_TRACE (a file to which every launch is added; none if empty).
enum Product { A2_TRAINING, A2_INFERENCE, A1 };  // Atlas 800T A2 (910B1..B3), Atlas 800I A2 (910B4), Atlas 800 (910A)
bool plans();
Product product();
const char *product_name();  // what aclrtGetSocName says

int64_t elements(const Dims &dims);
int64_t size_of(int dtype);  // bytes per element
const char *name_of(int dtype);
std::string describe(const Tensor *t);  // "float16[2, 3]"
bool is_floating(const Tensor *t);      // float32, float16 or bfloat16
bool is_half(const Tensor *t);
bool is_one_of(const Tensor *t, std::initializer_list<int> dtypes);
bool is_contiguous(const Tensor *t);
bool same_dims(const Tensor *a, const Tensor *b);
Dims broadcast(const Dims &a, const Dims &b);  // empty dims {-1} where they do not fit

// Values in C order, and back, rounded to nearest even. `dims`: broadcast to these.
std::vector<float> floats(const Tensor *t);
std::vector<float> floats(const Tensor *t, const Dims &dims);
std::vector<int64_t> integers(const Tensor *t);
std::vector<int64_t> integers(const Tensor *t, const Dims &dims);
void store(Tensor *t, const std::vector<float> &values);
void store(Tensor *t, const std::vector<int64_t> &values);
void copy(const Tensor *from, Tensor *to);  // from broadcasts to the dims of to; casts as needed
float rounded(float value, int dtype);      // to nearest even in a dtype of floats

// bfloat16 has no type of its own here; rounded to nearest even.
inline float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// c (m, n) = op(a) op(b), all float32 in C order; op(a) is (m, k).
void multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float *a, const float *b,
              float *c);

// One call of an operator with its arguments, before and behind GetWorkspaceSize.
struct Executor {
  std::string op;
  std::vector<const Tensor *> inputs, outputs;
  std::function<void()> run;
  bool repeatable = false;  // graphs launch it again and again, anything else once
};
struct Launch {
  std::string op;
  std::vector<const Tensor *> inputs, outputs;
  Launch(const char *function, std::vector<const Tensor *> inputs, std::vector<const Tensor *> outputs);
  int refuse(const std::string &rule) const;  // records the sentence, gives the error code
  int ready(uint64_t *workspace, Executor **executor, std::function<void()> run) const;
};
std::vector<const Tensor *> all_of(const TensorList *list);
int launch(Executor *executor, void *stream);

// `text` is the rest of a line of JSON, after the operator's name and the stream.
extern "C" void standin_trace_launch(const char *op, const char *text, void *stream);
extern "C" void standin_error(const char *sentence);  // what aclGetRecentErrMsg says next

#define ACLNN(NAME, PAGE, ...)                                                                \
  extern "C" int aclnn##NAME(void *, uint64_t, Executor *executor, void *stream) {            \
    return launch(executor, stream);                                                          \
  }                                                                                           \
  extern "C" int aclnn##NAME##GetWorkspaceSize(__VA_ARGS__, uint64_t *workspace, Executor **executor)
#define LAUNCH(...) Launch call(__func__, __VA_ARGS__)
#define NEED(condition, rule) \
  do {                        \
    if (!(condition)) return call.refuse(rule); \
  } while (0)
#define READY(...) call.ready(workspace, executor, __VA_ARGS__)

// out[i] = f(x[i]) and f(a[i], b[i]) with broadcasting, computed in float32, or in int64 where all are integers.
template <typename F>
void map(const Tensor *x, Tensor *out, F f) {
  std::vector<float> v = floats(x, out->dims);
  for (float &e : v) e = f(e);
  store(out, v);
}
template <typename F>
void map2(const Tensor *a, const Tensor *b, Tensor *out, F f) {
  std::vector<float> v = floats(a, out->dims), w = floats(b, out->dims);
  for (size_t i = 0; i < v.size(); i++) v[i] = f(v[i], w[i]);
  store(out, v);
}
template <typename F>
void map_integers(const Tensor *x, Tensor *out, F f) {
  std::vector<int64_t> v = integers(x, out->dims);
  for (int64_t &e : v) e = f(e);
  store(out, v);
}
template <typename F>
void map2_integers(const Tensor *a, const Tensor *b, Tensor *out, F f) {
  std::vector<int64_t> v = integers(a, out->dims), w = integers(b, out->dims);
  for (size_t i = 0; i < v.size(); i++) v[i] = f(v[i], w[i]);
  store(out, v);
}
