// libopapi.so of the stand-in: tensors as aclnn's functions see them, and what all operators share.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "standin.h"

extern "C" int dnnl_sgemm(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                          float, float *, int64_t);  // of MindSpore's own oneDNN, in C order

namespace {

template <typename T>
int64_t saturated(float value) {  // what a cast of a float gives beyond the range is not said; the ends are taken
  if (std::isnan(value)) return 0;
  const double low = double(std::numeric_limits<T>::min()), high = double(std::numeric_limits<T>::max());
  return value <= low ? std::numeric_limits<T>::min() : value >= high ? std::numeric_limits<T>::max() : int64_t(value);
}

// Calls visit(i, p) for the i-th element in C order of a tensor that is broadcast to `dims`; p counts elements.
template <typename F>
void walk(const Tensor *t, const Dims &dims, F visit) {
  const int64_t n = elements(dims);
  if (t->dims == dims && is_contiguous(t)) {
    for (int64_t i = 0; i < n; i++) visit(i, t->offset + i);
    return;
  }
  const size_t rank = dims.size(), missing = rank - t->dims.size();
  Dims strides(rank, 0), at(rank, 0);
  for (size_t k = missing; k < rank; k++) strides[k] = t->dims[k - missing] == 1 ? 0 : t->strides[k - missing];
  int64_t p = t->offset;
  for (int64_t i = 0; i < n; i++) {
    visit(i, p);
    for (size_t k = rank; k-- > 0;) {
      p += strides[k];
      if (++at[k] < dims[k]) break;
      p -= strides[k] * dims[k];
      at[k] = 0;
    }
  }
}

template <typename T, typename V, typename F>
std::vector<V> read(const Tensor *t, const Dims &dims, F value) {
  std::vector<V> out(size_t(elements(dims)));
  const T *data = reinterpret_cast<const T *>(t->data);
  walk(t, dims, [&](int64_t i, int64_t p) { out[size_t(i)] = value(data[p]); });
  return out;
}

template <typename V>
std::vector<V> read_any(const Tensor *t, const Dims &dims) {
  auto plain = [](auto x) { return V(x); };
  switch (t->dtype) {
    case F32: return read<float, V>(t, dims, plain);
    case F16: return read<_Float16, V>(t, dims, [](_Float16 x) { return V(float(x)); });
    case BF16: return read<uint16_t, V>(t, dims, [](uint16_t x) { return V(from_bfloat16(x)); });
    case F64: return read<double, V>(t, dims, plain);
    case I8: return read<int8_t, V>(t, dims, plain);
    case U8: return read<uint8_t, V>(t, dims, plain);
    case BOOL: return read<uint8_t, V>(t, dims, [](uint8_t x) { return V(x != 0); });
    case I16: return read<int16_t, V>(t, dims, plain);
    case I32: return read<int32_t, V>(t, dims, plain);
    case I64: return read<int64_t, V>(t, dims, plain);
  }
  fprintf(stderr, "stand-in: tensors of dtype %d are not known\n", t->dtype);
  abort();
}

template <typename T, typename V, typename F>
void write(Tensor *t, const std::vector<V> &values, F value) {
  T *data = reinterpret_cast<T *>(t->data);
  walk(t, t->dims, [&](int64_t i, int64_t p) { data[p] = value(values[size_t(i)]); });
}

template <typename T>
T narrowed(int64_t x) { return T(x); }  // wraps, as integers do
template <typename T>
T narrowed(float x) { return T(saturated<T>(x)); }

template <typename V>
void write_any(Tensor *t, const std::vector<V> &values) {
  switch (t->dtype) {
    case F32: return write<float>(t, values, [](V x) { return float(x); });
    case F16: return write<_Float16>(t, values, [](V x) { return _Float16(float(x)); });
    case BF16: return write<uint16_t>(t, values, [](V x) { return to_bfloat16(float(x)); });
    case F64: return write<double>(t, values, [](V x) { return double(x); });
    case I8: return write<int8_t>(t, values, [](V x) { return narrowed<int8_t>(x); });
    case U8: return write<uint8_t>(t, values, [](V x) { return narrowed<uint8_t>(x); });
    case BOOL: return write<uint8_t>(t, values, [](V x) { return uint8_t(x != 0); });
    case I16: return write<int16_t>(t, values, [](V x) { return narrowed<int16_t>(x); });
    case I32: return write<int32_t>(t, values, [](V x) { return narrowed<int32_t>(x); });
    case I64: return write<int64_t>(t, values, [](V x) { return narrowed<int64_t>(x); });
  }
  fprintf(stderr, "stand-in: tensors of dtype %d are not known\n", t->dtype);
  abort();
}

bool holds_integers(const Tensor *t) { return is_one_of(t, {I8, U8, I16, I32, I64, BOOL}); }

std::string list(const std::vector<const Tensor *> &tensors) {  // "[["float16", [2, 3]], ...]" for the trace
  std::string text;
  for (const Tensor *t : tensors) {
    if (!t) continue;
    text += text.empty() ? "[" : ", ";
    text += std::string("[\"") + name_of(t->dtype) + "\", [";
    for (size_t i = 0; i < t->dims.size(); i++) text += (i ? ", " : "") + std::to_string(t->dims[i]);
    text += "]]";
  }
  return text.empty() ? "[]" : text + "]";
}

int64_t bytes_of(const std::vector<const Tensor *> &tensors) {
  int64_t bytes = 0;
  for (const Tensor *t : tensors) bytes += t ? elements(t->dims) * size_of(t->dtype) : 0;
  return bytes;
}

}  // namespace

std::string describe(const Tensor *t) {
  if (!t) return "none";
  std::string text = std::string(name_of(t->dtype)) + "[";
  for (size_t i = 0; i < t->dims.size(); i++) text += (i ? ", " : "") + std::to_string(t->dims[i]);
  return text + "]";
}

bool is_one_of(const Tensor *t, std::initializer_list<int> dtypes) {
  return std::find(dtypes.begin(), dtypes.end(), t->dtype) != dtypes.end();
}
bool is_floating(const Tensor *t) { return is_one_of(t, {F32, F16, BF16}); }
bool is_half(const Tensor *t) { return is_one_of(t, {F16, BF16}); }
bool same_dims(const Tensor *a, const Tensor *b) { return a->dims == b->dims; }

bool is_contiguous(const Tensor *t) {
  int64_t expected = 1;
  for (size_t k = t->dims.size(); k-- > 0;) {
    if (t->dims[k] != 1 && t->strides[k] != expected) return false;
    expected *= t->dims[k];
  }
  return true;
}

Dims broadcast(const Dims &a, const Dims &b) {
  Dims out(std::max(a.size(), b.size()));
  for (size_t k = 0; k < out.size(); k++) {
    const int64_t x = k < a.size() ? a[a.size() - 1 - k] : 1, y = k < b.size() ? b[b.size() - 1 - k] : 1;
    if (x != y && x != 1 && y != 1) return {-1};
    out[out.size() - 1 - k] = x == 1 ? y : x;
  }
  return out;
}

std::vector<float> floats(const Tensor *t) { return read_any<float>(t, t->dims); }
std::vector<float> floats(const Tensor *t, const Dims &dims) { return read_any<float>(t, dims); }
std::vector<int64_t> integers(const Tensor *t) { return read_any<int64_t>(t, t->dims); }
std::vector<int64_t> integers(const Tensor *t, const Dims &dims) { return read_any<int64_t>(t, dims); }
void store(Tensor *t, const std::vector<float> &values) { write_any(t, values); }
void store(Tensor *t, const std::vector<int64_t> &values) { write_any(t, values); }

void copy(const Tensor *from, Tensor *to) {
  if (holds_integers(from)) store(to, integers(from, to->dims));
  else store(to, floats(from, to->dims));
}

float rounded(float value, int dtype) {
  if (dtype == F16) return float(_Float16(value));
  return dtype == BF16 ? from_bfloat16(to_bfloat16(value)) : value;
}

void multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float *a, const float *b,
              float *c) {
  if (k == 0) {
    std::fill(c, c + m * n, 0.0f);
    return;
  }
  dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1, a, transpose_a ? m : k, b,
             transpose_b ? k : n, 0, c, n);
}

Launch::Launch(const char *function, std::vector<const Tensor *> inputs, std::vector<const Tensor *> outputs)
    : op(function), inputs(std::move(inputs)), outputs(std::move(outputs)) {
  const std::string ending = "GetWorkspaceSize";
  if (op.size() > ending.size()) op.resize(op.size() - ending.size());
}

int Launch::refuse(const std::string &rule) const {
  std::string sentence = op + " refuses this call on " + product_name() + ": " + rule + "; given";
  for (const Tensor *t : inputs) sentence += " " + describe(t);
  sentence += " ->";
  for (const Tensor *t : outputs) sentence += " " + describe(t);
  standin_error(sentence.c_str());
  return 161002;  // ACLNN_ERR_PARAM_INVALID
}

int Launch::ready(uint64_t *workspace, Executor **executor, std::function<void()> run) const {
  for (const auto *tensors : {&inputs, &outputs})
    for (const Tensor *t : *tensors) {
      if (!t) continue;
      if (t->dims.size() > 8) return refuse("tensors have at most 8 axes");
      if (t->dtype == BF16 && product() == A1) return refuse("this product has no bfloat16");
    }
  *workspace = 0;
  *executor = new Executor{op, inputs, outputs, std::move(run)};
  return 0;
}

std::vector<const Tensor *> all_of(const TensorList *list) { return {list->values.begin(), list->values.end()}; }

int launch(Executor *executor, void *stream) {
  const std::string text = "\"inputs\": " + list(executor->inputs) + ", \"outputs\": " + list(executor->outputs) +
                           ", \"bytes\": " + std::to_string(bytes_of(executor->inputs) + bytes_of(executor->outputs));
  standin_trace_launch(executor->op.c_str(), text.c_str(), stream);
  if (!plans()) executor->run();
  if (!executor->repeatable) delete executor;
  return 0;
}

extern "C" {

Tensor *aclCreateTensor(const int64_t *dims, uint64_t rank, int dtype, const int64_t *strides, int64_t offset,
                        int format, const int64_t *, uint64_t, void *data) {
  Tensor *t = new Tensor{{dims, dims + rank}, Dims(rank), offset, dtype, format, static_cast<char *>(data)};
  int64_t stride = 1;
  for (size_t k = rank; k-- > 0; stride *= dims[k]) t->strides[k] = strides ? strides[k] : stride;
  return t;
}

Scalar *aclCreateScalar(const void *value, int dtype) {
  Tensor t{{}, {}, 0, dtype, 0, const_cast<char *>(static_cast<const char *>(value))};
  if (holds_integers(&t)) {
    const int64_t integer = integers(&t)[0];
    return new Scalar{double(integer), integer, dtype};
  }
  if (dtype == F64) return new Scalar{*static_cast<const double *>(value), 0, dtype};
  return new Scalar{floats(&t)[0], 0, dtype};
}

IntArray *aclCreateIntArray(const int64_t *values, uint64_t n) { return new IntArray{{values, values + n}}; }
FloatArray *aclCreateFloatArray(const float *values, uint64_t n) { return new FloatArray{{values, values + n}}; }
BoolArray *aclCreateBoolArray(const uint8_t *values, uint64_t n) { return new BoolArray{{values, values + n}}; }
TensorList *aclCreateTensorList(Tensor *const *values, uint64_t n) { return new TensorList{{values, values + n}}; }

int aclDestroyTensor(Tensor *p) { delete p; return 0; }
int aclDestroyScalar(Scalar *p) { delete p; return 0; }
int aclDestroyIntArray(IntArray *p) { delete p; return 0; }
int aclDestroyFloatArray(FloatArray *p) { delete p; return 0; }
int aclDestroyBoolArray(BoolArray *p) { delete p; return 0; }
int aclDestroyTensorList(TensorList *p) {  // with its tensors, as CANN does
  for (Tensor *t : p->values) delete t;
  delete p;
  return 0;
}
int aclDestroyAclOpExecutor(Executor *p) { delete p; return 0; }
int aclSetAclOpExecutorRepeatable(Executor *p) { p->repeatable = true; return 0; }
int aclSetTensorAddr(Executor *, size_t, Tensor *t, void *data) { t->data = static_cast<char *>(data); return 0; }
int aclSetDynamicTensorAddr(Executor *, size_t, size_t i, TensorList *list, void *data) {
  list->values[i]->data = static_cast<char *>(data);
  return 0;
}
int aclGetViewShape(const Tensor *t, int64_t **dims, uint64_t *rank) {
  *rank = t->dims.size();
  *dims = new int64_t[t->dims.size() + 1];
  std::copy(t->dims.begin(), t->dims.end(), *dims);
  return 0;
}
int InitHugeMemThreadLocal(void *, bool) { return 0; }
void UnInitHugeMemThreadLocal(void *, bool) {}
void ReleaseHugeMem(void *, bool) {}
int aclnnInit(const char *) { return 0; }
int aclnnFinalize() { return 0; }
}
