// Products of matrices: operands as cubeMathType rounds them, sums in float32, results rounded once.
#include "cube.h"

namespace {

bool is_math(int math, int last) { return math >= KEEP_DTYPE && math <= last; }
// The A1's cube has no float32, and nothing but float16 to round it to.
bool has_product(int math, int dtype) {
  return product() != A1 || dtype != F32 || (math != KEEP_DTYPE && math != USE_HF32);
}

Dims batch_of(const Tensor *t) { return {t->dims.begin(), t->dims.end() - 2}; }
int64_t rows(const Tensor *t) { return t->dims[t->dims.size() - 2]; }
int64_t columns(const Tensor *t) { return t->dims.back(); }

Tensor transposed(const Tensor *t) {
  Tensor view = *t;
  std::swap(view.dims[view.dims.size() - 1], view.dims[view.dims.size() - 2]);
  std::swap(view.strides[view.dims.size() - 1], view.strides[view.dims.size() - 2]);
  return view;
}

// A vector as a matrix of one row or one column; a matrix as it is.
Tensor as_row(const Tensor *t) {
  Tensor view = *t;
  if (t->dims.size() == 1) view.dims.insert(view.dims.begin(), 1), view.strides.insert(view.strides.begin(), 0);
  return view;
}
Tensor as_column(const Tensor *t) {
  Tensor view = as_row(t);
  return t->dims.size() == 1 ? transposed(&view) : view;
}

// An operand as multiply() takes it: a transposed view is read as it lies in memory.
struct Matrix {
  bool swapped;
  Tensor view;
  Operand values;
  Matrix(const Tensor *t, Arithmetic how) : swapped(lies_transposed(t)), view(swapped ? transposed(t) : *t), values(&view, how) {}

  static bool lies_transposed(const Tensor *t) {
    if (is_contiguous(t)) return false;
    const Tensor other = transposed(t);
    return is_contiguous(&other);
  }
};

// For every matrix of a batch that was broadcast to `dims`, its index before.
std::vector<int64_t> places(const Dims &batch, const Dims &dims) {
  std::vector<int64_t> found(size_t(elements(dims)));
  for (size_t i = 0; i < found.size(); i++) {
    int64_t rest = int64_t(i), step = 1, place = 0;
    for (size_t k = 0; k < dims.size(); k++) {
      const int64_t at = rest % dims[dims.size() - 1 - k];
      rest /= dims[dims.size() - 1 - k];
      if (k >= batch.size()) continue;
      const int64_t extent = batch[batch.size() - 1 - k];
      place += (extent == 1 ? 0 : at) * step;
      step *= extent;
    }
    found[i] = place;
  }
  return found;
}

// a (..., m, k) times b (..., k, n), in C order; `dims` is what their batches broadcast to.
std::vector<float> product_of(const Tensor *a, const Tensor *b, const Dims &dims, int math) {
  const Arithmetic how = arithmetic(math, promoted(a, b));
  const Matrix left(a, how), right(b, how);
  const int64_t m = rows(a), k = columns(a), n = columns(b), matrices = elements(dims);
  std::vector<float> out(size_t(matrices * m * n));
  if (elements(batch_of(b)) == 1 && elements(batch_of(a)) == matrices && !left.swapped) {
    multiply(false, right.swapped, matrices * m, n, k, left.values.data, right.values.data, out.data());
    return out;
  }
  const std::vector<int64_t> first = places(batch_of(a), dims), second = places(batch_of(b), dims);
  for (int64_t i = 0; i < matrices; i++)
    multiply(left.swapped, right.swapped, m, n, k, left.values.data + first[size_t(i)] * m * k,
             right.values.data + second[size_t(i)] * k * n, out.data() + i * m * n);
  return out;
}

bool can_multiply(const Tensor *a, const Tensor *b) { return columns(a) == rows(b); }

// The dims of a matrix product as aclnnMatmul gives them: those that vectors were given are taken away again.
Dims product_dims(const Tensor *a, const Tensor *b) {
  const Tensor left = as_row(a), right = as_column(b);
  Dims dims = broadcast(batch_of(&left), batch_of(&right));
  if (a->dims.size() > 1) dims.push_back(rows(&left));
  if (b->dims.size() > 1) dims.push_back(columns(&right));
  return dims;
}

// beta * self + alpha * product, where the intermediate results are rounded too unless `fused`.
void add(const Tensor *self, std::vector<float> product, double beta, double alpha, bool fused, Tensor *out) {
  const std::vector<float> bias = floats(self, out->dims);
  auto stored = [&](float value) { return fused ? value : rounded(value, out->dtype); };
  for (size_t i = 0; i < product.size(); i++)
    product[i] = stored(float(beta) * bias[i]) + stored(float(alpha) * stored(product[i]));
  store(out, product);
}

}  // namespace

ACLNN(Mm, "ops-nn matmul/mat_mul_v3/docs/aclnnMm.md", const Tensor *self, const Tensor *mat2, Tensor *out, int8_t math) {
  LAUNCH({self, mat2}, {out});
  NEED(all_floating({self, mat2, out}), "tensors are float32, float16 or bfloat16");
  NEED(promotable(self, mat2), "bfloat16 is multiplied with bfloat16 alone");
  NEED(out->dtype == promoted(self, mat2), "out has the dtype that the matrices are multiplied in");
  NEED(self->dims.size() == 2 && mat2->dims.size() == 2, "self and mat2 are matrices");
  NEED(can_multiply(self, mat2), "self has as many columns as mat2 has rows");
  NEED((out->dims == Dims{rows(self), columns(mat2)}), "out is (rows of self, columns of mat2)");
  NEED(is_math(math, USE_FP32_ADD), "cubeMathType is 0, 1, 2, 3 or 4");
  NEED(has_product(math, promoted(self, mat2)), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math != USE_HF32 || product() != A1, "this product has no cubeMathType 3");
  NEED(math != USE_FP16 || !any_is(BF16, {self, mat2}), "bfloat16 is not multiplied with cubeMathType 2");
  NEED(math != USE_HF32 || promoted(self, mat2) == F32, "cubeMathType 3 is for float32");
  return READY([=] { store(out, product_of(self, mat2, {}, math)); });
}

ACLNN(Matmul, "ops-nn matmul/mat_mul_v3/docs/aclnnMatmul.md", const Tensor *self, const Tensor *mat2, Tensor *out,
      int8_t math) {
  LAUNCH({self, mat2}, {out});
  NEED(all_floating({self, mat2, out}), "tensors are float32, float16 or bfloat16");
  NEED(promotable(self, mat2), "bfloat16 is multiplied with bfloat16 alone");
  const size_t ranks[] = {self->dims.size(), mat2->dims.size()};
  NEED(ranks[0] >= 1 && ranks[1] >= 1 && ranks[0] <= 6 && ranks[1] <= 6, "self and mat2 have 1 to 6 axes");
  const Tensor a = as_row(self), b = as_column(mat2);
  NEED(can_multiply(&a, &b), "the last axis of self is as long as the one of mat2 that it is summed with");
  const Dims batch = broadcast(batch_of(&a), batch_of(&b));
  NEED(batch != Dims{-1}, "the axes before the last two broadcast");
  NEED(out->dims == product_dims(self, mat2), "out has the shape of the product");
  NEED(is_math(math, USE_FP32_ADD), "cubeMathType is 0, 1, 2, 3 or 4");
  NEED(has_product(math, promoted(self, mat2)), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math != USE_HF32 || product() != A1, "this product has no cubeMathType 3");
  NEED(math != USE_FP16 || !any_is(BF16, {self, mat2}), "bfloat16 is not multiplied with cubeMathType 2");
  NEED(math != USE_HF32 || promoted(self, mat2) == F32, "cubeMathType 3 is for float32");
  return READY([=] {
    const Tensor left = as_row(self), right = as_column(mat2);
    store(out, product_of(&left, &right, batch, math));
  });
}

ACLNN(BatchMatMul, "ops-nn matmul/batch_mat_mul_v3/docs/aclnnBatchMatMul.md", const Tensor *self, const Tensor *mat2,
      Tensor *out, int8_t math) {
  LAUNCH({self, mat2}, {out});
  NEED(all_floating({self, mat2, out}), "tensors are float32, float16 or bfloat16");
  NEED(promotable(self, mat2), "bfloat16 is multiplied with bfloat16 alone");
  NEED(self->dims.size() == 3 && mat2->dims.size() == 3, "self and mat2 have 3 axes");
  NEED(can_multiply(self, mat2), "the last axis of self is as long as the second of mat2");
  const Dims batch = broadcast(batch_of(self), batch_of(mat2));
  NEED(batch != Dims{-1}, "the batches are equally long, or one is 1");
  NEED((out->dims == Dims{batch[0], rows(self), columns(mat2)}), "out has the shape of the product");
  NEED(is_math(math, USE_HF32), "cubeMathType is 0, 1, 2 or 3");
  NEED(has_product(math, promoted(self, mat2)), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math != USE_HF32 || product() != A1, "this product has no cubeMathType 3");
  return READY([=] { store(out, product_of(self, mat2, batch, math)); });
}

ACLNN(Addmm, "ops-nn matmul/mat_mul_v3/docs/aclnnAddmm&aclnnInplaceAddmm.md", const Tensor *self, const Tensor *mat1,
      const Tensor *mat2, const Scalar *beta, const Scalar *alpha, Tensor *out, int8_t math) {
  LAUNCH({self, mat1, mat2}, {out});
  NEED(all_floating({self, mat1, mat2, out}), "tensors are float32, float16 or bfloat16");
  NEED(promotable(mat1, mat2), "bfloat16 is multiplied with bfloat16 alone");
  NEED(mat1->dims.size() == 2 && mat2->dims.size() == 2, "mat1 and mat2 are matrices");
  NEED(can_multiply(mat1, mat2), "mat1 has as many columns as mat2 has rows");
  NEED((out->dims == Dims{rows(mat1), columns(mat2)}), "out is (rows of mat1, columns of mat2)");
  NEED(self->dims.size() == 1 || self->dims.size() == 2, "self has 1 or 2 axes");
  NEED(broadcast(self->dims, out->dims) == out->dims, "self broadcasts to out");
  NEED(is_math(math, USE_FP32_ADD), "cubeMathType is 0, 1, 2, 3 or 4");
  NEED(has_product(math, promoted(mat1, mat2)), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math < USE_HF32 || product() != A1, "this product has no cubeMathType 3 or 4");
  NEED(math != USE_FP16 || !any_is(BF16, {mat1, mat2}), "bfloat16 is not multiplied with cubeMathType 2");
  NEED(math != USE_HF32 || promoted(mat1, mat2) == F32, "cubeMathType 3 is for float32");
  const double b = beta->number, a = alpha->number;
  // A bias of one row is added before the sums are rounded.
  const bool bias = a == 1 && b == 1 && (self->dims.size() == 1 || self->dims[0] == 1);
  const bool fused = bias || math == USE_FP32_ADD || out->dtype == F32;
  return READY([=] { add(self, product_of(mat1, mat2, {}, math), b, a, fused, out); });
}

ACLNN(Baddbmm, "ops-nn matmul/batch_mat_mul_v3/docs/aclnnBaddbmm&aclnnInplaceBaddbmm.md", const Tensor *self,
      const Tensor *batch1, const Tensor *batch2, const Scalar *beta, const Scalar *alpha, Tensor *out, int8_t math) {
  LAUNCH({self, batch1, batch2}, {out});
  NEED(all_floating({self, batch1, batch2, out}), "tensors are float32, float16 or bfloat16");
  NEED(promotable(batch1, batch2), "bfloat16 is multiplied with bfloat16 alone");
  NEED(self->dtype == out->dtype, "self and out have one dtype");
  NEED(batch1->dims.size() == 3 && batch2->dims.size() == 3, "batch1 and batch2 have 3 axes");
  NEED(can_multiply(batch1, batch2), "the last axis of batch1 is as long as the second of batch2");
  const Dims batch = broadcast(batch_of(batch1), batch_of(batch2));
  NEED(batch != Dims{-1}, "the batches are equally long, or one is 1");
  NEED((out->dims == Dims{batch[0], rows(batch1), columns(batch2)}), "out has the shape of the product");
  NEED(self->dims.size() >= 1 && self->dims.size() <= 3, "self has 1 to 3 axes");
  NEED(broadcast(self->dims, out->dims) == out->dims, "self broadcasts to out");
  NEED(is_math(math, USE_FP32_ADD), "cubeMathType is 0, 1, 2, 3 or 4");
  NEED(has_product(math, promoted(batch1, batch2)), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math < USE_HF32 || product() != A1, "this product has no cubeMathType 3 or 4");
  const double b = beta->number, a = alpha->number;
  const bool fused = product() != A1 && (math == KEEP_DTYPE || math == USE_FP32_ADD);
  return READY([=] { add(self, product_of(batch1, batch2, batch, math), b, a, fused || out->dtype == F32, out); });
}

ACLNN(Mv, "ops-nn matmul/mv/docs/aclnnMv.md", const Tensor *self, const Tensor *vec, Tensor *out, int8_t math) {
  LAUNCH({self, vec}, {out});
  NEED(is_floating(self), "tensors are float32, float16 or bfloat16");
  NEED(self->dtype == vec->dtype && self->dtype == out->dtype, "self, vec and out have one dtype");
  NEED(self->dims.size() == 2 && vec->dims.size() == 1, "self is a matrix and vec a vector");
  NEED(columns(self) == vec->dims[0], "self has as many columns as vec has elements");
  NEED((out->dims == Dims{rows(self)}), "out has as many elements as self has rows");
  NEED(is_math(math, USE_HF32), "cubeMathType is 0, 1, 2 or 3");
  NEED(has_product(math, self->dtype), "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(math != USE_HF32 || product() != A1, "this product has no cubeMathType 3");
  NEED(math != USE_FP16 || self->dtype != BF16, "bfloat16 is not multiplied with cubeMathType 2");
  NEED(math != USE_HF32 || self->dtype == F32, "cubeMathType 3 is for float32");
  return READY([=] {
    const Tensor column = as_column(vec);
    store(out, product_of(self, &column, {}, math));
  });
}

ACLNN(Dot, "ops-math math/dot/docs/aclnnDot.md", const Tensor *self, const Tensor *tensor, Tensor *out) {
  LAUNCH({self, tensor}, {out});
  NEED(is_floating(self) || is_one_of(self, {I8, U8, I32}), "tensors are float32, float16, bfloat16, int8, uint8 or int32");
  NEED(self->dtype == tensor->dtype && self->dtype == out->dtype, "self, tensor and out have one dtype");
  NEED(self->dims.size() == 1 && same_dims(self, tensor), "self and tensor are vectors of one length");
  NEED(out->dims.empty(), "out has no axes");
  return READY([=] {
    if (is_floating(self)) {
      const Tensor row = as_row(self), column = as_column(tensor);
      return store(out, product_of(&row, &column, {}, KEEP_DTYPE));
    }
    const std::vector<int64_t> a = integers(self), b = integers(tensor);
    int64_t sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
    store(out, std::vector<int64_t>{sum});
  });
}
