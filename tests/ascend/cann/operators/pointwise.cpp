// Operators that work on one element at a time, computed in float32, or in int64 where all tensors hold integers.
#include "standin.h"

namespace {
const char *const FLOATING = "tensors are float32, float16 or bfloat16";
}

ACLNN(Add, "ops-math math/add/docs/aclnnAdd&aclnnInplaceAdd.md", const Tensor *a, const Tensor *b, const Scalar *alpha, Tensor *out) {
  LAUNCH({a, b}, {out});
  NEED(broadcast(a->dims, b->dims) == out->dims, "out has the shape that the inputs broadcast to");
  const double scale = alpha->number;
  return READY([=] { map2(a, b, out, [=](float x, float y) { return x + float(scale) * y; }); });
}
