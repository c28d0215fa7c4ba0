// Operators that work on one element at a time: in float32, rounded once to the output, or in int64 for integers.
#include "standin.h"

namespace {

bool is_known(const Tensor *t) { return is_floating(t) || is_one_of(t, {BOOL, U8, I8, I16, I32, I64}); }
bool is_integral(const Tensor *t) { return is_known(t) && !is_floating(t); }
bool fits(const Tensor *a, const Tensor *b, const Tensor *out) { return broadcast(a->dims, b->dims) == out->dims; }
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// The tanh form of GELU with its slope: u = sqrt(2/pi) (x + 0.044715 x^3).
float gelu_tanh(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }
float gelu_tanh_slope(float x) {
  const float t = std::tanh(0.7978845608f * (x + 0.044715f * x * x * x));
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}
float gelu_erf(float x) { return 0.5f * x * (1 + std::erf(x * 0.7071067812f)); }
float gelu_erf_slope(float x) {
  return 0.5f * (1 + std::erf(x * 0.7071067812f)) + x * 0.3989422804f * std::exp(-0.5f * x * x);
}

template <typename T>
T modulo(T x, T y) { return x - y * T(std::floor(double(x) / double(y))); }

}  // namespace

#define ACLNN_ARITHMETIC(NAME, PAGE, EXPRESSION)                                                               \
  ACLNN(NAME, PAGE, const Tensor *a, const Tensor *b, Tensor *out) {                                           \
    LAUNCH({a, b}, {out});                                                                                     \
    NEED(is_known(a) && is_known(b) && is_known(out), "tensors are floats of 16 or 32 bits, integers or bool"); \
    NEED(fits(a, b, out), "out has the shape that the inputs broadcast to");                                   \
    NEED(!is_floating(a) || !is_integral(out), "a float is not cast to an integer");                           \
    if (is_integral(a) && is_integral(b) && is_integral(out))                                                  \
      return READY([=] { map2_integers(a, b, out, [](int64_t x, int64_t y) { return int64_t(EXPRESSION); }); }); \
    return READY([=] { map2(a, b, out, [](float x, float y) { return EXPRESSION; }); });                       \
  }
#define ACLNN_SUM(NAME, PAGE, SIGN)                                                                                    \
  ACLNN(NAME, PAGE, const Tensor *a, const Tensor *b, const Scalar *alpha, Tensor *out) {                              \
    LAUNCH({a, b}, {out});                                                                                             \
    NEED(is_known(a) && is_known(b) && is_known(out), "tensors are floats of 16 or 32 bits, integers or bool");        \
    NEED(fits(a, b, out), "out has the shape that the inputs broadcast to");                                           \
    NEED(!is_floating(a) || !is_integral(out), "a float is not cast to an integer");                                   \
    const float scale = float(SIGN * alpha->number);                                                                   \
    const int64_t times = SIGN * alpha->integer;                                                                       \
    if (is_integral(a) && is_integral(b) && is_integral(out))                                                          \
      return READY([=] { map2_integers(a, b, out, [=](int64_t x, int64_t y) { return x + times * y; }); });            \
    return READY([=] { map2(a, b, out, [=](float x, float y) { return x + scale * y; }); });                           \
  }
#define ACLNN_SUM_SCALAR(NAME, PAGE, SIGN)                                                                             \
  ACLNN(NAME, PAGE, const Tensor *a, const Scalar *b, const Scalar *alpha, Tensor *out) {                              \
    LAUNCH({a}, {out});                                                                                                \
    NEED(is_known(a) && is_known(out), "tensors are floats of 16 or 32 bits, integers or bool");                       \
    NEED(same_dims(a, out), "out has the shape of self");                                                              \
    const float added = float(SIGN * alpha->number * b->number);                                                       \
    const int64_t integer = SIGN * alpha->integer * b->integer;                                                        \
    if (is_integral(a) && is_integral(out))                                                                            \
      return READY([=] { map_integers(a, out, [=](int64_t x) { return x + integer; }); });                             \
    return READY([=] { map(a, out, [=](float x) { return x + added; }); });                                            \
  }
#define ACLNN_COMPARISON(NAME, PAGE, EXPRESSION)                                                            \
  ACLNN(NAME, PAGE, const Tensor *a, const Tensor *b, Tensor *out) {                                        \
    LAUNCH({a, b}, {out});                                                                                  \
    NEED(is_known(a) && is_known(b), "tensors are floats of 16 or 32 bits, integers or bool");              \
    NEED(out->dtype == BOOL, "out is bool");                                                                \
    NEED(fits(a, b, out), "out has the shape that the inputs broadcast to");                                \
    if (is_integral(a) && is_integral(b))                                                                   \
      return READY([=] { map2_integers(a, b, out, [](int64_t x, int64_t y) { return int64_t(EXPRESSION); }); }); \
    return READY([=] { map2(a, b, out, [](float x, float y) { return float(EXPRESSION); }); });             \
  }
#define ACLNN_COMPARISON_SCALAR(NAME, PAGE, EXPRESSION)                                                     \
  ACLNN(NAME, PAGE, const Tensor *a, const Scalar *b, Tensor *out) {                                        \
    LAUNCH({a}, {out});                                                                                     \
    NEED(is_known(a), "tensors are floats of 16 or 32 bits, integers or bool");                             \
    NEED(out->dtype == BOOL, "out is bool");                                                                \
    NEED(same_dims(a, out), "out has the shape of self");                                                   \
    const float y = float(b->number);                                                                       \
    return READY([=] { map(a, out, [=](float x) { return float(EXPRESSION); }); });                         \
  }
#define ACLNN_FUNCTION(NAME, PAGE, EXPRESSION)                                           \
  ACLNN(NAME, PAGE, const Tensor *a, Tensor *out) {                                      \
    LAUNCH({a}, {out});                                                                  \
    NEED(is_known(a) && is_floating(out), "out is float32, float16 or bfloat16");        \
    NEED(same_dims(a, out), "out has the shape of self");                                \
    return READY([=] { map(a, out, [](float x) { return EXPRESSION; }); });              \
  }
#define ACLNN_ACTIVATION(NAME, PAGE, EXPRESSION)                                         \
  ACLNN(NAME, PAGE, const Tensor *a, Tensor *out) {                                      \
    LAUNCH({a}, {out});                                                                  \
    NEED(is_floating(a), "self is float32, float16 or bfloat16");                        \
    NEED(a->dtype == out->dtype, "out has the dtype of self");                           \
    NEED(same_dims(a, out), "out has the shape of self");                                \
    return READY([=] { map(a, out, [](float x) { return EXPRESSION; }); });              \
  }

ACLNN_ARITHMETIC(Mul, "ops-math math/mul/docs/aclnnMul&aclnnInplaceMul.md", x * y)
ACLNN_ARITHMETIC(Maximum, "ops-math math/maximum/docs/aclnnMaximum.md", std::isnan(float(x)) || x > y ? x : y)
ACLNN_ARITHMETIC(Minimum, "ops-math math/minimum/docs/aclnnMinimum.md", std::isnan(float(x)) || x < y ? x : y)
ACLNN_ARITHMETIC(FloorDivide, "ops-math math/floor_div/docs/aclnnFloorDivide&aclnnInplaceFloorDivide.md",
                 std::floor(double(x) / double(y)))
ACLNN_ARITHMETIC(RemainderTensorTensor, "ops-math math/floor_mod/docs/aclnnRemainderTensorTensor.md", modulo(x, y))
ACLNN_ARITHMETIC(PowTensorTensor, "ops-math math/pow/docs/aclnnPowTensorTensor&aclnnInplacePowTensorTensor.md",
                 std::pow(x, y))

ACLNN_COMPARISON(LtTensor, "ops-math math/less/docs/aclnnLtTensor&aclnnInplaceLtTensor.md", x < y)
ACLNN_COMPARISON(LeTensor, "ops-math math/less_equal/docs/aclnnLeTensor&aclnnInplaceLeTensor.md", x <= y)
ACLNN_COMPARISON(GtTensor, "ops-math math/greater/docs/aclnnGtTensor&aclnnInplaceGtTensor.md", x > y)
ACLNN_COMPARISON(GeTensor, "ops-math math/greater_equal/docs/aclnnGeTensor&aclnnInplaceGeTensor.md", x >= y)
ACLNN_COMPARISON(EqTensor, "ops-math math/equal/docs/aclnnEqTensor&aclnnInplaceEqTensor.md", x == y)
ACLNN_COMPARISON(NeTensor, "ops-math math/not_equal/docs/aclnnNeTensor&aclnnInplaceNeTensor.md", x != y)
ACLNN_COMPARISON(LogicalAnd, "ops-math math/logical_and/docs/aclnnLogicalAnd&aclnnInplaceLogicalAnd.md", x != 0 && y != 0)
ACLNN_COMPARISON(LogicalOr, "ops-math math/logical_or/docs/aclnnLogicalOr&aclnnInplaceLogicalOr.md", x != 0 || y != 0)
ACLNN_COMPARISON_SCALAR(LtScalar, "ops-math math/less/docs/aclnnLtScalar&aclnnInplaceLtScalar.md", x < y)
ACLNN_COMPARISON_SCALAR(LeScalar, "ops-math math/less_equal/docs/aclnnLeScalar&aclnnInplaceLeScalar.md", x <= y)
ACLNN_COMPARISON_SCALAR(GtScalar, "ops-math math/greater/docs/aclnnGtScalar&aclnnInplaceGtScalar.md", x > y)
ACLNN_COMPARISON_SCALAR(GeScalar, "ops-math math/greater_equal/docs/aclnnGeScalar&aclnnInplaceGeScalar.md", x >= y)
ACLNN_COMPARISON_SCALAR(EqScalar, "ops-math math/equal/docs/aclnnEqScalar&aclnnInplaceEqScalar.md", x == y)
ACLNN_COMPARISON_SCALAR(NeScalar, "ops-math math/not_equal/docs/aclnnNeScalar&aclnnInplaceNeScalar.md", x != y)

ACLNN_FUNCTION(Sqrt, "ops-math math/sqrt/docs/aclnnSqrt&aclnnInplaceSqrt.md", std::sqrt(x))
ACLNN_FUNCTION(Rsqrt, "ops-math math/rsqrt/docs/aclnnRsqrt&aclnnInplaceRsqrt.md", 1 / std::sqrt(x))
ACLNN_FUNCTION(Reciprocal, "ops-math math/reciprocal/docs/aclnnReciprocal&aclnnInplaceReciprocal.md", 1 / x)
ACLNN_FUNCTION(Exp, "ops-math math/exp/docs/aclnnExp&aclnnInplaceExp.md", std::exp(x))
ACLNN_FUNCTION(Log, "ops-math math/log/docs/aclnnLog&aclnnInplaceLog.md", std::log(x))
ACLNN_FUNCTION(Sin, "ops-math math/sin/docs/aclnnSin&aclnnInplaceSin.md", std::sin(x))
ACLNN_FUNCTION(Cos, "ops-math math/cos/docs/aclnnCos&aclnnInplaceCos.md", std::cos(x))
ACLNN_FUNCTION(Tanh, "ops-math math/tanh/docs/aclnnTanh&aclnnInplaceTanh.md", std::tanh(x))
ACLNN_FUNCTION(Erf, "ops-math math/erf/docs/aclnnErf&aclnnInplaceErf.md", std::erf(x))
ACLNN_FUNCTION(Sigmoid, "ops-nn activation/sigmoid/docs/aclnnSigmoid&aclnnInplaceSigmoid.md", sigmoid(x))
ACLNN_FUNCTION(Floor, "ops-math math/floor/docs/aclnnFloor&aclnnInplaceFloor.md", std::floor(x))
ACLNN_ACTIVATION(Silu, "ops-nn activation/swish/docs/aclnnSilu.md", x * sigmoid(x))
ACLNN_ACTIVATION(Gelu, "ops-nn activation/gelu/docs/aclnnGelu.md", gelu_tanh(x))
ACLNN_ACTIVATION(Relu, "ops-nn activation/relu/docs/aclnnRelu&aclnnInplaceRelu.md", x > 0 ? x : 0)

ACLNN_SUM(Add, "ops-math math/add/docs/aclnnAdd&aclnnInplaceAdd.md", 1)
ACLNN_SUM(Sub, "ops-math math/sub/docs/aclnnSub&aclnnInplaceSub.md", -1)
ACLNN_SUM_SCALAR(Adds, "ops-math math/add/docs/aclnnAdds.md", 1)
ACLNN_SUM_SCALAR(Subs, "ops-math math/sub/docs/aclnnSubs&aclnnInplaceSubs.md", -1)

ACLNN(Muls, "ops-math math/muls/docs/aclnnMuls&aclnnInplaceMuls.md", const Tensor *a, const Scalar *b, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && is_known(out), "tensors are floats of 16 or 32 bits, integers or bool");
  NEED(same_dims(a, out), "out has the shape of self");
  const float factor = float(b->number);
  const int64_t integer = b->integer;
  if (is_integral(a) && is_integral(out)) return READY([=] { map_integers(a, out, [=](int64_t x) { return x * integer; }); });
  return READY([=] { map(a, out, [=](float x) { return x * factor; }); });
}

ACLNN(Div, "ops-math math/div/docs/aclnnDiv&aclnnInplaceDiv.md", const Tensor *a, const Tensor *b, Tensor *out) {
  LAUNCH({a, b}, {out});
  NEED(is_known(a) && is_known(b) && is_floating(out), "out is float32, float16 or bfloat16");
  NEED(fits(a, b, out), "out has the shape that the inputs broadcast to");
  return READY([=] { map2(a, b, out, [](float x, float y) { return x / y; }); });
}

ACLNN(Divs, "ops-math math/div/docs/aclnnDivs&aclnnInplaceDivs.md", const Tensor *a, const Scalar *b, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && is_floating(out), "out is float32, float16 or bfloat16");
  NEED(same_dims(a, out), "out has the shape of self");
  const float divisor = float(b->number);
  return READY([=] { map(a, out, [=](float x) { return x / divisor; }); });
}

ACLNN(PowTensorScalar, "ops-math math/pow/docs/aclnnPowTensorScalar&aclnnInplacePowTensorScalar.md", const Tensor *a,
      const Scalar *exponent, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && is_floating(out), "out is float32, float16 or bfloat16");
  NEED(same_dims(a, out), "out has the shape of self");
  const float power = float(exponent->number);
  return READY([=] { map(a, out, [=](float x) { return std::pow(x, power); }); });
}

ACLNN(PowScalarTensor, "ops-math math/pow/docs/aclnnPowScalarTensor.md", const Scalar *base, const Tensor *exponent,
      Tensor *out) {
  LAUNCH({exponent}, {out});
  NEED(is_known(exponent) && is_floating(out), "out is float32, float16 or bfloat16");
  NEED(same_dims(exponent, out), "out has the shape of exponent");
  const float x = float(base->number);
  return READY([=] { map(exponent, out, [=](float y) { return std::pow(x, y); }); });
}

ACLNN(Cast, "ops-math math/cast/docs/aclnnCast.md", const Tensor *a, int dtype, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) || a->dtype == F64, "self is a float of 16 to 64 bits, an integer or bool");
  NEED(out->dtype == dtype, "out has the dtype asked for");
  NEED(same_dims(a, out), "out has the shape of self");
  return READY([=] { copy(a, out); });
}

ACLNN(Neg, "ops-math math/neg/docs/aclnnNeg&aclnnInplaceNeg.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_floating(a) || is_one_of(a, {I8, I32, I64}), "self is a float, int8, int32 or int64");
  NEED(same_dims(a, out), "out has the shape of self");
  if (is_integral(a)) return READY([=] { map_integers(a, out, [](int64_t x) { return -x; }); });
  return READY([=] { map(a, out, [](float x) { return -x; }); });
}

ACLNN(Abs, "ops-math math/abs/docs/aclnnAbs.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a), "tensors are floats of 16 or 32 bits, integers or bool");
  NEED(same_dims(a, out), "out has the shape of self");
  if (is_integral(a)) return READY([=] { map_integers(a, out, [](int64_t x) { return x < 0 ? -x : x; }); });
  return READY([=] { map(a, out, [](float x) { return std::fabs(x); }); });
}

ACLNN(Sign, "ops-math math/sign/docs/aclnnSign.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_floating(a), "self is float32, float16 or bfloat16");
  NEED(a->dtype == out->dtype && same_dims(a, out), "out has the dtype and the shape of self");
  return READY([=] { map(a, out, [](float x) { return float((x > 0) - (x < 0)); }); });
}

ACLNN(Square, "ops-math math/square/docs/aclnnSquare.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_floating(a) || is_one_of(a, {I32, I64}), "self is a float, int32 or int64");
  NEED(a->dtype == out->dtype && same_dims(a, out), "out has the dtype and the shape of self");
  if (is_integral(a)) return READY([=] { map_integers(a, out, [](int64_t x) { return x * x; }); });
  return READY([=] { map(a, out, [](float x) { return x * x; }); });
}

ACLNN(LogicalNot, "ops-math math/logical_not/docs/aclnnLogicalNot&aclnnInplaceLogicalNot.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a), "tensors are floats of 16 or 32 bits, integers or bool");
  NEED(same_dims(a, out), "out has the shape of self");
  return READY([=] { map(a, out, [](float x) { return float(x == 0); }); });
}

ACLNN(IsFinite, "ops-math math/is_finite/docs/aclnnIsFinite.md", const Tensor *a, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_floating(a), "self is float32, float16 or bfloat16");
  NEED(out->dtype == BOOL && same_dims(a, out), "out is bool and has the shape of self");
  return READY([=] { map(a, out, [](float x) { return float(std::isfinite(x)); }); });
}

ACLNN(Clamp, "ops-math conversion/clip_by_value_v2/docs/aclnnClamp.md", const Tensor *a, const Scalar *low,
      const Scalar *high, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && same_dims(a, out), "out has the shape of self");
  const float least = low ? float(low->number) : -INFINITY, most = high ? float(high->number) : INFINITY;
  return READY([=] { map(a, out, [=](float x) { return std::fmin(std::fmax(x, least), most); }); });
}

ACLNN(Addcmul, "ops-math math/addcmul/docs/aclnnAddcmul&aclnnInplaceAddcmul.md", const Tensor *a, const Tensor *b, const Tensor *c,
      const Scalar *value, Tensor *out) {
  LAUNCH({a, b, c}, {out});
  NEED(is_floating(a) && is_floating(b) && is_floating(c) && is_floating(out), "tensors are floats of 16 or 32 bits, not integers");
  NEED(broadcast(a->dims, broadcast(b->dims, c->dims)) == out->dims, "out has the shape that the inputs broadcast to");
  const float factor = float(value->number);
  return READY([=] {
    std::vector<float> x = floats(a, out->dims), y = floats(b, out->dims), z = floats(c, out->dims);
    for (size_t i = 0; i < x.size(); i++) x[i] += factor * (y[i] * z[i]);
    store(out, x);
  });
}

ACLNN(SWhere, "ops-math math/select/docs/aclnnSWhere.md", const Tensor *condition, const Tensor *a, const Tensor *b,
      Tensor *out) {
  LAUNCH({condition, a, b}, {out});
  NEED(is_one_of(condition, {BOOL, U8}), "condition is bool or uint8");
  NEED(is_known(a) && is_known(b), "tensors are floats of 16 or 32 bits, integers or bool");
  NEED(broadcast(condition->dims, broadcast(a->dims, b->dims)) == out->dims, "out has the shape that the inputs broadcast to");
  return READY([=] {
    const std::vector<float> choice = floats(condition, out->dims);
    if (is_integral(out)) {
      std::vector<int64_t> x = integers(a, out->dims), y = integers(b, out->dims);
      for (size_t i = 0; i < x.size(); i++) x[i] = choice[i] != 0 ? x[i] : y[i];
      return store(out, x);
    }
    std::vector<float> x = floats(a, out->dims), y = floats(b, out->dims);
    for (size_t i = 0; i < x.size(); i++) x[i] = choice[i] != 0 ? x[i] : y[i];
    store(out, x);
  });
}

ACLNN(GeluV2, "ops-nn activation/gelu_v2/docs/aclnnGeluV2.md", const Tensor *a, int64_t approximate, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_floating(a), "x is float32, float16 or bfloat16");
  NEED(a->dtype == out->dtype && same_dims(a, out), "y has the dtype and the shape of x");
  NEED(approximate == 0 || approximate == 1, "approximate is 0 (erf) or 1 (tanh)");
  return READY([=] { map(a, out, [=](float x) { return approximate ? gelu_tanh(x) : gelu_erf(x); }); });
}

ACLNN(GeluBackwardV2, "ops-nn activation/gelu_grad_v2/docs/aclnnGeluBackwardV2.md", const Tensor *d, const Tensor *a,
      char *approximate, Tensor *out) {
  LAUNCH({d, a}, {out});
  NEED(is_floating(d) && is_floating(a), "tensors are float32, float16 or bfloat16");
  NEED(fits(d, a, out), "gradInput has the shape that the inputs broadcast to");
  const bool tanh = std::string(approximate) == "tanh";
  NEED(tanh || std::string(approximate) == "none", "approximate is none or tanh");
  return READY([=] { map2(d, a, out, [=](float g, float x) { return g * (tanh ? gelu_tanh_slope(x) : gelu_erf_slope(x)); }); });
}

ACLNN(GeluBackward, "ops-nn activation/gelu_grad/docs/aclnnGeluBackward.md", const Tensor *d, const Tensor *a, Tensor *out) {
  LAUNCH({d, a}, {out});
  NEED(is_floating(d) && is_floating(a), "tensors are float32, float16 or bfloat16");
  NEED(fits(d, a, out), "gradInput has the shape that the inputs broadcast to");
  return READY([=] { map2(d, a, out, [](float g, float x) { return g * gelu_erf_slope(x); }); });
}

ACLNN(SiluBackward, "ops-nn activation/silu_grad/docs/aclnnSiluBackward.md", const Tensor *d, const Tensor *a, Tensor *out) {
  LAUNCH({d, a}, {out});
  NEED(is_floating(d) && d->dtype == a->dtype && a->dtype == out->dtype, "all tensors have one dtype of floats");
  NEED(same_dims(d, a) && same_dims(a, out), "all tensors have one shape");
  return READY([=] {
    map2(d, a, out, [](float g, float x) { return g * sigmoid(x) * (1 + x * (1 - sigmoid(x))); });
  });
}

ACLNN(SigmoidBackward, "ops-nn activation/sigmoid_grad/docs/aclnnSigmoidBackward.md", const Tensor *d, const Tensor *y,
      Tensor *out) {
  LAUNCH({d, y}, {out});
  NEED(is_floating(d) && is_floating(y), "tensors are float32, float16 or bfloat16");
  NEED(same_dims(d, y) && same_dims(y, out), "all tensors have one shape");
  return READY([=] { map2(d, y, out, [](float g, float s) { return g * s * (1 - s); }); });
}

ACLNN(TanhBackward, "ops-math math/tanh_grad/docs/aclnnTanhBackward.md", const Tensor *d, const Tensor *y, Tensor *out) {
  LAUNCH({d, y}, {out});
  NEED(is_floating(d) && is_floating(y), "tensors are float32, float16 or bfloat16");
  NEED(same_dims(d, y) && same_dims(y, out), "all tensors have one shape");
  return READY([=] { map2(d, y, out, [](float g, float t) { return g * (1 - t * t); }); });
}

ACLNN(InplaceMul, "ops-math math/mul/docs/aclnnMul&aclnnInplaceMul.md", Tensor *a, const Tensor *b) {
  LAUNCH({a, b}, {a});
  NEED(is_known(a) && is_known(b), "tensors are floats of 16 or 32 bits, integers or bool");
  NEED(fits(a, b, a), "self has the shape that the inputs broadcast to");
  return READY([=] { map2(a, b, a, [](float x, float y) { return x * y; }); });
}

ACLNN(InplaceMuls, "ops-math math/muls/docs/aclnnMuls&aclnnInplaceMuls.md", Tensor *a, const Scalar *b) {
  LAUNCH({a}, {a});
  NEED(is_floating(a), "self is float32, float16 or bfloat16");
  const float factor = float(b->number);
  return READY([=] { map(a, a, [=](float x) { return x * factor; }); });
}

ACLNN(InplaceAdd, "ops-math math/add/docs/aclnnAdd&aclnnInplaceAdd.md", Tensor *a, const Tensor *b, const Scalar *alpha) {
  LAUNCH({a, b}, {a});
  NEED(is_floating(a) && is_known(b), "self is float32, float16 or bfloat16");
  NEED(fits(a, b, a), "self has the shape that the inputs broadcast to");
  const float scale = float(alpha->number);
  return READY([=] { map2(a, b, a, [=](float x, float y) { return x + scale * y; }); });
}

ACLNN(Lerps, "ops-math math/lerp/docs/aclnnLerps&aclnnInplaceLerps.md", const Tensor *start, const Tensor *end,
      const Scalar *weight, Tensor *out) {
  LAUNCH({start, end}, {out});
  NEED(is_floating(start) && start->dtype == end->dtype && start->dtype == out->dtype,
       "self, end and out are float32, float16 or bfloat16, all of one dtype");
  NEED(fits(start, end, out), "out has the shape that the inputs broadcast to");
  const float share = float(weight->number);
  return READY([=] { map2(start, end, out, [=](float x, float y) { return x + share * (y - x); }); });
}

// In the order of op_kernel/apply_adam_w_v2_fp.h beside the page, which also tells what the page does not: `step` counts
// the steps before this one.
ACLNN(ApplyAdamWV2, "ops-nn optim/apply_adam_w_v2/docs/aclnnApplyAdamWV2.md", Tensor *weight, Tensor *mean,
      Tensor *square, Tensor *, const Tensor *gradient, const Tensor *step, float rate, float beta1, float beta2,
      float decay, float eps, bool amsgrad, bool maximize) {
  LAUNCH({weight, mean, square, gradient, step}, {weight, mean, square});
  NEED(product() != A1, "the product is Atlas A2 or A3, not 910A");
  NEED(is_floating(weight), "var is float32, float16 or bfloat16");
  NEED(weight->dtype == mean->dtype && weight->dtype == square->dtype && weight->dtype == gradient->dtype,
       "var, m, v and grad have one dtype");
  NEED(same_dims(weight, mean) && same_dims(weight, square) && same_dims(weight, gradient),
       "var, m, v and grad have one shape");
  NEED(is_one_of(step, {F32, I64}), "step is float32 or int64");
  NEED(elements(step->dims) == 1, "step has one element");
  NEED(!amsgrad, "the stand-in has no amsgrad");
  return READY([=] {
    std::vector<float> w = floats(weight), m = floats(mean), v = floats(square), g = floats(gradient);
    const float t = 1 + (step->dtype == F32 ? floats(step)[0] : float(integers(step)[0]));
    const float size = rate / (1 - std::pow(beta1, t)), root = 1 / std::sqrt(1 - std::pow(beta2, t));
    for (size_t i = 0; i < w.size(); i++) {
      const float slope = maximize ? -g[i] : g[i];
      m[i] += (slope - m[i]) * (1 - beta1);
      v[i] = v[i] * beta2 + slope * slope * (1 - beta2);
      w[i] = w[i] * (1 - rate * decay) - m[i] / (std::sqrt(v[i]) * root + eps) * size;
    }
    store(weight, w), store(mean, m), store(square, v);
  });
}
