// Products with int8 weights.
#include "standin.h"

ACLNN(WeightQuantBatchMatmulV2, "ops-nn matmul/weight_quant_batch_matmul_v2/docs/aclnnWeightQuantBatchMatmulV2.md",
      const Tensor *x, const Tensor *w, const Tensor *scale, const Tensor *offset, const Tensor *quant_scale,
      const Tensor *quant_offset, const Tensor *bias, int group, Tensor *y) {
  LAUNCH({x, w, scale, offset, bias}, {y});
  NEED(product() != A1, "the product is Atlas A2 or A3, not 910A");
  NEED(is_half(x), "x is float16 or bfloat16");
  NEED(is_one_of(w, {I8}), "weight is int8 (int4, which the page has too, the stand-in has not)");
  NEED(scale->dtype == x->dtype && (!offset || offset->dtype == x->dtype), "antiquantScale has the dtype of x");
  NEED(x->dims.size() == 2 && w->dims.size() == 2 && y->dims.size() == 2, "x, weight and y have two axes");
  const int64_t m = x->dims[0], k = x->dims[1], n = w->dims[1];
  NEED(w->dims[0] == k, "weight is (k, n) for x (m, k)");
  NEED(y->dims == (Dims{m, n}) && y->dtype == x->dtype, "y is (m, n) in the dtype of x");
  NEED(k >= 1 && k <= 65535 && n >= 1 && n <= 65535, "k and n are 1 to 65535");
  NEED(m >= 1 && m <= INT32_MAX, "m is 1 to 2^31 - 1");
  NEED(is_contiguous(x), "the stand-in has no x that is transposed");
  NEED(is_contiguous(w) || w->strides == (Dims{1, k}), "weight is contiguous, or transposed");
  NEED(scale->dims == Dims{n} || scale->dims == (Dims{1, n}) || scale->dims == Dims{1} || scale->dims == (Dims{1, 1}),
       "antiquantScale is (n), (1, n), (1) or (1, 1); the stand-in has no groups");
  NEED(!offset || same_dims(offset, scale), "antiquantOffset has the shape of antiquantScale");
  NEED(group == 0, "antiquantGroupSize is 0 without groups");
  NEED(!quant_scale && !quant_offset, "the stand-in has no output in int8");
  NEED(!bias || bias->dtype == (x->dtype == BF16 ? F32 : F16), "bias is float16 for x of float16, else float32");
  NEED(!bias || bias->dims == Dims{n} || bias->dims == (Dims{1, n}), "bias is (n) or (1, n)");
  return READY([=] {
    // As on the card, the weight becomes scaled halves before it is multiplied; float16 rounds each step of that.
    std::vector<float> matrix = floats(w), added = offset ? floats(offset, {k, n}) : std::vector<float>(k * n, 0.0f);
    const std::vector<float> times = floats(scale, {k, n});
    for (int64_t i = 0; i < k * n; i++) {
      const float moved = matrix[i] + added[i];
      matrix[i] = rounded((x->dtype == F16 ? rounded(moved, F16) : moved) * times[i], x->dtype);
    }
    std::vector<float> product(m * n);
    multiply(false, false, m, n, k, floats(x).data(), matrix.data(), product.data());
    if (bias) {
      const std::vector<float> b = floats(bias, {m, n});
      for (int64_t i = 0; i < m * n; i++) product[i] += b[i];
    }
    store(y, product);
  });
}
