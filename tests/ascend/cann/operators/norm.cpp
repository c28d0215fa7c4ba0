// Normalisations and softmax with their gradients: computed in float32, rounded once.
#include <algorithm>

#include "standin.h"

namespace {

// Floats in C order seen as (outer, n, inner), of which the middle axis is summed over.
struct Lines { int64_t outer, n, inner; };

Lines lines_of(const Dims &dims, int64_t axis) {
  if (dims.empty()) return {1, 1, 1};
  const long at = long(axis < 0 ? axis + int64_t(dims.size()) : axis);
  return {elements(Dims(dims.begin(), dims.begin() + at)), dims[size_t(at)], elements(Dims(dims.begin() + at + 1, dims.end()))};
}

bool is_axis(int64_t axis, const Dims &dims) {
  const int64_t rank = std::max<int64_t>(1, int64_t(dims.size()));
  return axis >= -rank && axis < rank;
}

// Calls line(value) for every line, where value(i) is the place of its i-th element.
template <typename F>
void each_line(const Lines &l, F line) {
  for (int64_t o = 0; o < l.outer; o++)
    for (int64_t j = 0; j < l.inner; j++)
      line([=](int64_t i) { return size_t((o * l.n + i) * l.inner + j); });
}

void softmax(std::vector<float> &x, const Lines &l, bool logarithm) {
  each_line(l, [&](auto at) {
    float top = -INFINITY;
    for (int64_t i = 0; i < l.n; i++) top = std::max(top, x[at(i)]);
    double sum = 0;
    for (int64_t i = 0; i < l.n; i++) {
      const float shifted = x[at(i)] - top, power = std::exp(shifted);
      sum += double(power);
      x[at(i)] = logarithm ? shifted : power;
    }
    const float scale = float(1 / sum), logged = float(std::log(sum));
    for (int64_t i = 0; i < l.n; i++) x[at(i)] = logarithm ? x[at(i)] - logged : x[at(i)] * scale;
  });
}

// The gradient before softmax, from the one behind it and its output; or before its logarithm.
void softmax_gradient(std::vector<float> &dy, const std::vector<float> &y, const Lines &l, bool logarithm) {
  each_line(l, [&](auto at) {
    double sum = 0;
    for (int64_t i = 0; i < l.n; i++) sum += double(dy[at(i)]) * (logarithm ? 1.0 : double(y[at(i)]));
    const float s = float(sum);
    for (int64_t i = 0; i < l.n; i++) {
      const size_t p = at(i);
      dy[p] = logarithm ? dy[p] - std::exp(y[p]) * s : y[p] * (dy[p] - s);
    }
  });
}

// Rows of n elements that are normalised together. Element i of a row has weight (i / block) of `weights` per row;
// a group norm's rows are the groups of an image, whose weights go on with the row.
struct Rows { int64_t count, n, block, weights; };

struct Affine { std::vector<float> scale, shift; };

std::vector<float> values_or(const Tensor *t, float otherwise, int64_t n) {
  return t ? floats(t) : std::vector<float>(size_t(n), otherwise);
}

// The weights of a row begin at this one.
int64_t first_weight(const Rows &r, int64_t row) { return row * (r.n / r.block) % r.weights; }

void normalise(std::vector<float> &x, const Rows &r, const Affine &affine, double eps, std::vector<float> &mean, std::vector<float> &rstd) {
  mean.resize(size_t(r.count)), rstd.resize(size_t(r.count));
  for (int64_t row = 0; row < r.count; row++) {
    float *v = x.data() + row * r.n;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < r.n; i++) sum += double(v[i]);
    const double centre = sum / double(r.n);
    for (int64_t i = 0; i < r.n; i++) squares += (double(v[i]) - centre) * (double(v[i]) - centre);
    const float m = mean[size_t(row)] = float(centre), s = rstd[size_t(row)] = float(1 / std::sqrt(squares / double(r.n) + eps));
    const float *scale = affine.scale.data() + first_weight(r, row), *shift = affine.shift.data() + first_weight(r, row);
    for (int64_t j = 0; j < r.n / r.block; j++)
      for (int64_t i = j * r.block; i < (j + 1) * r.block; i++) v[i] = (v[i] - m) * s * scale[j] + shift[j];
  }
}

// dy becomes the gradient of what was normalised; those of scale and shift are added up over the rows.
// `centred`: a mean was subtracted (mean is not read otherwise).
void gradient(std::vector<float> &dy, const std::vector<float> &x, const Rows &r, const std::vector<float> &mean,
              const std::vector<float> &rstd, const std::vector<float> &scale, bool centred, std::vector<float> &dscale,
              std::vector<float> &dshift) {
  std::vector<double> scales(size_t(r.weights), 0), shifts(size_t(r.weights), 0);
  for (int64_t row = 0; row < r.count; row++) {
    float *g = dy.data() + row * r.n;
    const float *v = x.data() + row * r.n, m = centred ? mean[size_t(row)] : 0, s = rstd[size_t(row)];
    const int64_t first = first_weight(r, row);
    double sum = 0, along = 0;
    for (int64_t j = 0; j < r.n / r.block; j++)
      for (int64_t i = j * r.block; i < (j + 1) * r.block; i++) {
        const double normal = double((v[i] - m) * s), scaled = double(g[i]) * double(scale[size_t(first + j)]);
        scales[size_t(first + j)] += double(g[i]) * normal;
        shifts[size_t(first + j)] += double(g[i]);
        sum += scaled, along += scaled * normal;
      }
    const float centre = centred ? float(sum / double(r.n)) : 0, lean = float(along / double(r.n));
    for (int64_t j = 0; j < r.n / r.block; j++)
      for (int64_t i = j * r.block; i < (j + 1) * r.block; i++)
        g[i] = s * (g[i] * scale[size_t(first + j)] - centre - (v[i] - m) * s * lean);
  }
  dscale.assign(scales.begin(), scales.end());
  dshift.assign(shifts.begin(), shifts.end());
}

bool ends_with(const Dims &dims, const Dims &last) {
  return dims.size() >= last.size() && std::equal(last.begin(), last.end(), dims.end() - long(last.size()));
}
bool is_weight(const Tensor *t, const Tensor *x, const Dims &dims) {
  return !t || (t->dims == dims && (t->dtype == x->dtype || t->dtype == F32));
}
bool is_given(uint8_t wanted, const Tensor *t) { return !wanted || t; }

}  // namespace

// The page says that mean and rstd have the input's dtype; CANN's check takes any dtype of floats, and MindSpore asks
// for float32.
ACLNN(LayerNorm, "ops-nn norm/layer_norm_v4/docs/aclnnLayerNorm&aclnnLayerNormWithImplMode.md", const Tensor *input,
      const IntArray *normalized, const Tensor *weight, const Tensor *bias, double eps, Tensor *out, Tensor *mean, Tensor *rstd) {
  LAUNCH({input, weight, bias}, {out, mean, rstd});
  NEED(is_floating(input), "input is float32, float16 or bfloat16");
  NEED(!normalized->values.empty() && ends_with(input->dims, normalized->values), "input ends with the normalised shape");
  NEED(is_weight(weight, input, normalized->values), "weight has the normalised shape, in the dtype of input or float32");
  NEED(is_weight(bias, input, normalized->values), "bias has the normalised shape, in the dtype of input or float32");
  NEED(!weight || !bias || weight->dtype == bias->dtype, "weight and bias have one dtype");
  NEED(same_dims(out, input) && out->dtype == input->dtype, "out has the shape and dtype of input");
  NEED((!mean || is_floating(mean)) && (!rstd || is_floating(rstd)), "mean and rstd are float32, float16 or bfloat16");
  const int64_t n = elements(normalized->values), rows = n ? elements(input->dims) / n : 0;
  NEED((!mean || elements(mean->dims) == rows) && (!rstd || elements(rstd->dims) == rows),
       "mean and rstd have as many elements as rows are normalised");
  return READY([=] {
    std::vector<float> x = floats(input), means, rstds;
    normalise(x, {rows, n, 1, n}, {values_or(weight, 1, n), values_or(bias, 0, n)}, eps, means, rstds);
    store(out, x);
    if (mean) store(mean, means);
    if (rstd) store(rstd, rstds);
  });
}

ACLNN(LayerNormBackward, "ops-nn norm/layer_norm_grad_v3/docs/aclnnLayerNormBackward.md", const Tensor *grad_out,
      const Tensor *input, const IntArray *normalized, const Tensor *mean, const Tensor *rstd, const Tensor *weight,
      const Tensor *bias, const BoolArray *mask, Tensor *grad_input, Tensor *grad_weight, Tensor *grad_bias) {
  LAUNCH({grad_out, input, mean, rstd, weight, bias}, {grad_input, grad_weight, grad_bias});
  NEED(is_floating(grad_out), "gradOut is float32, float16 or bfloat16");
  NEED(same_dims(grad_out, input) && grad_out->dtype == input->dtype, "gradOut and input have one shape and dtype");
  NEED(!normalized->values.empty() && ends_with(input->dims, normalized->values), "input ends with the normalised shape");
  const int64_t n = elements(normalized->values), rows = n ? elements(input->dims) / n : 0;
  NEED(n > 0 && rows > 0, "no tensor is empty");
  NEED(mean->dtype == rstd->dtype && is_floating(mean) && size_of(mean->dtype) >= size_of(input->dtype),
       "mean and rstd have one dtype, not narrower than that of input");
  NEED(same_dims(mean, rstd) && elements(mean->dims) == rows, "mean and rstd have an element for every row that is normalised");
  NEED(is_weight(weight, input, normalized->values), "weight has the normalised shape, in the dtype of input or float32");
  NEED(is_weight(bias, input, normalized->values), "bias has the normalised shape, in the dtype of input or float32");
  NEED(!weight || !bias || weight->dtype == bias->dtype, "weight and bias have one dtype");
  NEED(mask->values.size() == 3, "outputMask has 3 elements");
  NEED(is_given(mask->values[0], grad_input) && is_given(mask->values[1], grad_weight) && is_given(mask->values[2], grad_bias),
       "what outputMask asks for is given");
  NEED(!mask->values[0] || (same_dims(grad_input, input) && grad_input->dtype == input->dtype),
       "gradInput has the shape and dtype of input");
  NEED(!mask->values[1] || (elements(grad_weight->dims) == n && grad_weight->dtype == (weight ? weight : input)->dtype),
       "gradWeight has the shape and dtype of weight");
  NEED(!mask->values[2] || (elements(grad_bias->dims) == n && grad_bias->dtype == (weight ? weight : input)->dtype),
       "gradBias has the shape and dtype of weight");
  const std::vector<uint8_t> wanted = mask->values;
  return READY([=] {
    std::vector<float> dy = floats(grad_out), dscale, dshift;
    gradient(dy, floats(input), {rows, n, 1, n}, floats(mean), floats(rstd), values_or(weight, 1, n), true, dscale, dshift);
    if (wanted[0]) store(grad_input, dy);
    if (wanted[1]) store(grad_weight, dscale);
    if (wanted[2]) store(grad_bias, dshift);
  });
}

ACLNN(GroupNorm, "ops-nn norm/group_norm/docs/aclnnGroupNorm.md", const Tensor *self, const Tensor *gamma, const Tensor *beta,
      int64_t n, int64_t c, int64_t places, int64_t group, double eps, Tensor *out, Tensor *mean, Tensor *rstd) {
  LAUNCH({self, gamma, beta}, {out, mean, rstd});
  NEED(is_floating(self), "self is float32, float16 or bfloat16");
  for (const Tensor *t : {gamma, beta, static_cast<const Tensor *>(out), static_cast<const Tensor *>(mean), static_cast<const Tensor *>(rstd)})
    NEED(!t || t->dtype == self->dtype, "all tensors have one dtype");
  NEED(self->dims.size() >= 2 && self->dims.size() <= 8, "self has 2 to 8 axes");
  NEED(group > 0 && c % group == 0, "C is a multiple of group, which is over 0");
  NEED(eps > 0, "eps is over 0");
  NEED(self->dims[0] == n && self->dims[1] == c && elements(self->dims) == n * c * places, "self is (N, C, ...) with HxW places");
  NEED((!gamma || gamma->dims == Dims{c}) && (!beta || beta->dims == Dims{c}), "gamma and beta are (C)");
  NEED(same_dims(out, self), "out has the shape of self");
  NEED((mean->dims == Dims{n, group}) && same_dims(mean, rstd), "meanOut and rstdOut are (N, group)");
  return READY([=] {
    std::vector<float> x = floats(self), means, rstds;
    normalise(x, {n * group, c / group * places, places, c}, {values_or(gamma, 1, c), values_or(beta, 0, c)}, eps, means, rstds);
    store(out, x);
    store(mean, means);
    store(rstd, rstds);
  });
}

ACLNN(GroupNormBackward, "ops-nn norm/group_norm_grad/docs/aclnnGroupNormBackward.md", const Tensor *grad_out,
      const Tensor *input, const Tensor *mean, const Tensor *rstd, const Tensor *gamma, int64_t n, int64_t c, int64_t places,
      int64_t group, const BoolArray *mask, Tensor *grad_input, Tensor *grad_gamma, Tensor *grad_beta) {
  LAUNCH({grad_out, input, mean, rstd, gamma}, {grad_input, grad_gamma, grad_beta});
  NEED(is_floating(grad_out), "gradOut is float32, float16 or bfloat16");
  NEED(mask->values.size() == 3, "outputMask has 3 elements");
  NEED(is_given(mask->values[0], grad_input) && is_given(mask->values[1], grad_gamma) && is_given(mask->values[2], grad_beta),
       "what outputMask asks for is given");
  for (const Tensor *t : {input, mean, rstd, gamma}) NEED(!t || t->dtype == grad_out->dtype, "all inputs have one dtype");
  const std::vector<Tensor *> results = {grad_input, grad_gamma, grad_beta};
  const std::vector<uint8_t> wanted = mask->values;
  for (size_t i = 0; i < 3; i++) NEED(!wanted[i] || results[i]->dtype == grad_out->dtype, "gradients have the dtype of gradOut");
  NEED(group > 0 && c % group == 0, "C is a multiple of group, which is over 0");
  NEED(c <= 240000 && c / group <= 8000, "C is at most 240000, and C / group at most 8000");
  NEED(elements(grad_out->dims) == n * c * places && elements(input->dims) == n * c * places,
       "gradOut and input have N * C * HxW elements");
  NEED(elements(mean->dims) == n * group && elements(rstd->dims) == n * group, "mean and rstd have N * group elements");
  NEED(!gamma || elements(gamma->dims) == c, "gamma has C elements");
  NEED(!wanted[0] || same_dims(grad_input, input), "gradInput has the shape of input");
  for (size_t i = 1; i < 3; i++)
    NEED(!wanted[i] || results[i]->dims == (gamma ? gamma->dims : Dims{c}), "gradGammaOut and gradBetaOut have the shape of gamma");
  return READY([=] {
    std::vector<float> dy = floats(grad_out), dscale, dshift;
    const Rows rows{n * group, c / group * places, places, c};
    gradient(dy, floats(input), rows, floats(mean), floats(rstd), values_or(gamma, 1, c), true, dscale, dshift);
    if (wanted[0]) store(grad_input, dy);
    if (wanted[1]) store(grad_gamma, dscale);
    if (wanted[2]) store(grad_beta, dshift);
  });
}

ACLNN(RmsNorm, "ops-nn norm/rms_norm/docs/aclnnRmsNorm.md", const Tensor *x, const Tensor *gamma, double epsilon, Tensor *y,
      Tensor *rstd) {
  LAUNCH({x, gamma}, {y, rstd});
  NEED(product() != A1, "this product has no aclnnRmsNorm");
  NEED(is_floating(x) && y->dtype == x->dtype, "x and yOut are float32, float16 or bfloat16, both the same");
  NEED(gamma->dtype == x->dtype || gamma->dtype == F32, "gamma has the dtype of x or float32");
  NEED(rstd->dtype == F32, "rstdOut is float32");
  NEED(!gamma->dims.empty() && ends_with(x->dims, gamma->dims) && elements(gamma->dims) > 0, "x ends with the shape of gamma");
  NEED(same_dims(y, x), "yOut has the shape of x");
  const int64_t n = elements(gamma->dims), rows = elements(x->dims) / n;
  Dims reduced = x->dims;
  std::fill(reduced.end() - long(gamma->dims.size()), reduced.end(), 1);
  NEED(rstd->dims == reduced, "rstdOut has the shape of x with 1 for every axis that is normalised");
  return READY([=] {
    std::vector<float> v = floats(x), rstds(size_t(rows), 0.0f);
    const std::vector<float> scale = floats(gamma);
    for (int64_t row = 0; row < rows; row++) {
      float *values = v.data() + row * n;
      double squares = 0;
      for (int64_t i = 0; i < n; i++) squares += double(values[i]) * double(values[i]);
      const float s = rstds[size_t(row)] = float(1 / std::sqrt(squares / double(n) + epsilon));
      for (int64_t i = 0; i < n; i++) values[i] = values[i] * s * scale[size_t(i)];
    }
    store(y, v);
    store(rstd, rstds);
  });
}

ACLNN(RmsNormGrad, "ops-nn norm/rms_norm_grad/docs/aclnnRmsNormGrad.md", const Tensor *dy, const Tensor *x, const Tensor *rstd,
      const Tensor *gamma, Tensor *dx, Tensor *dgamma) {
  LAUNCH({dy, x, rstd, gamma}, {dx, dgamma});
  NEED(product() != A1, "this product has no aclnnRmsNormGrad");
  NEED(is_floating(x) && dy->dtype == x->dtype && dx->dtype == x->dtype, "dy, x and dxOut have one dtype of floats");
  NEED(gamma->dtype == x->dtype || gamma->dtype == F32, "gamma has the dtype of x or float32");
  NEED(rstd->dtype == F32 && dgamma->dtype == F32, "rstd and dgammaOut are float32");
  NEED(!gamma->dims.empty() && ends_with(x->dims, gamma->dims) && elements(gamma->dims) > 0, "x ends with the shape of gamma");
  NEED(x->dims.size() >= 2 && same_dims(dy, x) && same_dims(dx, x), "dy, x and dxOut have one shape, of at least 2 axes");
  const int64_t n = elements(gamma->dims), rows = elements(x->dims) / n;
  NEED(elements(rstd->dims) == rows, "rstd has an element for every row that is normalised");
  NEED(same_dims(dgamma, gamma), "dgammaOut has the shape of gamma");
  return READY([=] {
    std::vector<float> v = floats(dy), dscale, dshift;
    gradient(v, floats(x), {rows, n, 1, n}, {}, floats(rstd), floats(gamma), false, dscale, dshift);
    store(dx, v);
    store(dgamma, dscale);
  });
}

ACLNN(Softmax, "ops-nn activation/softmax_v2/docs/aclnnSoftmax.md", const Tensor *self, int64_t dim, Tensor *out) {
  LAUNCH({self}, {out});
  NEED((is_floating(self) || self->dtype == F64) && (is_floating(out) || out->dtype == F64),
       "self and out are float32, float16, bfloat16 or float64");
  NEED(is_axis(dim, self->dims), "dim is an axis of self");
  NEED(same_dims(out, self), "out has the shape of self");
  return READY([=] {
    std::vector<float> x = floats(self);
    softmax(x, lines_of(self->dims, dim), false);
    store(out, x);
  });
}

ACLNN(SoftmaxBackward, "ops-nn activation/softmax_grad/docs/aclnnSoftmaxBackward.md", const Tensor *grad_output,
      const Tensor *output, int64_t dim, Tensor *out) {
  LAUNCH({grad_output, output}, {out});
  NEED(is_floating(grad_output) && is_floating(out), "gradOutput and out are float32, float16 or bfloat16");
  NEED(grad_output->dtype == output->dtype, "gradOutput and output have one dtype");
  NEED(is_axis(dim, grad_output->dims), "dim is an axis of gradOutput");
  NEED(same_dims(grad_output, output) && same_dims(grad_output, out), "gradOutput, output and out have one shape");
  return READY([=] {
    std::vector<float> dy = floats(grad_output);
    softmax_gradient(dy, floats(output), lines_of(output->dims, dim), false);
    store(out, dy);
  });
}

ACLNN(LogSoftmax, "ops-nn activation/log_softmax_v2/docs/aclnnLogSoftmax.md", const Tensor *self, int64_t dim, Tensor *out) {
  LAUNCH({self}, {out});
  NEED((is_floating(self) || self->dtype == F64) && (is_floating(out) || out->dtype == F64),
       "self and out are float32, float16, bfloat16 or float64");
  NEED(!self->dims.empty() && is_axis(dim, self->dims), "dim is an axis of self");
  NEED(same_dims(out, self), "out has the shape of self");
  return READY([=] {
    std::vector<float> x = floats(self);
    softmax(x, lines_of(self->dims, dim), true);
    store(out, x);
  });
}

ACLNN(LogSoftmaxBackward, "ops-nn activation/log_softmax_grad/docs/aclnnLogSoftmaxBackward.md", const Tensor *grad_output,
      const Tensor *output, int64_t dim, Tensor *out) {
  LAUNCH({grad_output, output}, {out});
  NEED(is_floating(grad_output) && is_floating(out), "gradOutput and out are float32, float16 or bfloat16");
  NEED(grad_output->dtype == output->dtype, "gradOutput and output have one dtype");
  NEED(!grad_output->dims.empty() && is_axis(dim, grad_output->dims), "dim is an axis of gradOutput");
  NEED(same_dims(grad_output, output) && same_dims(grad_output, out), "gradOutput, output and out have one shape");
  return READY([=] {
    std::vector<float> dy = floats(grad_output);
    softmax_gradient(dy, floats(output), lines_of(output->dims, dim), true);
    store(out, dy);
  });
}
