// Convolutions of one to three axes and their gradients, as products of unfolded images and weights.
//
// A convolution maps an image to features; a transposed one maps features to an image, as the first one's gradient does.
#include <algorithm>

#include "cube.h"

namespace {

const int AXES = 3;  // fewer axes are led by axes of length 1

Dims led(const Dims &dims, size_t from, int64_t fill) {
  Dims out(size_t(AXES) - (dims.size() - from), fill);
  out.insert(out.end(), dims.begin() + long(from), dims.end());
  return out;
}

// Padding before every axis: one number an axis or one for all, or two an axis where those of both sides differ.
Dims padding_before(const Dims &padding, size_t axes) {
  if (padding.size() == axes) return padding;
  Dims before;
  for (size_t i = 0; i < axes; i++) before.push_back(padding.size() == 1 ? padding[0] : padding[2 * i]);
  return before;
}
Dims padding_after(const Dims &padding, size_t axes) {
  if (padding.size() != 2 * axes) return padding_before(padding, axes);
  Dims after;
  for (size_t i = 0; i < axes; i++) after.push_back(padding[2 * i + 1]);
  return after;
}

struct Settings { Dims stride, padding, dilation, more; bool transposed; int64_t groups; };

// The length of an axis behind a convolution: of the features from the image, or transposed the other way round.
Dims output_dims(const Tensor *input, const Tensor *weight, const Settings &s) {
  const size_t axes = input->dims.size() - 2;
  const Dims before = padding_before(s.padding, axes), after = padding_after(s.padding, axes);
  Dims dims = {input->dims[0], s.transposed ? weight->dims[1] * s.groups : weight->dims[0]};
  for (size_t i = 0; i < axes; i++) {
    const int64_t span = s.dilation[i] * (weight->dims[i + 2] - 1) + 1, in = input->dims[i + 2];
    const int64_t pad = before[i] + after[i];
    dims.push_back(s.transposed ? (in - 1) * s.stride[i] - pad + span + s.more[i]
                                : in + pad < span ? 0 : (in + pad - span) / s.stride[i] + 1);
  }
  return dims;
}

struct Geometry {
  int64_t images, groups, inner, outer;  // inner: channels of the image per group, outer: of the features
  Dims image, features, kernel, stride, before, dilation;

  Geometry(const Tensor *image_like, const Tensor *features_like, const Tensor *weight, const Settings &s)
      : images(image_like->dims[0]), groups(s.groups), inner(image_like->dims[1] / s.groups),
        outer(features_like->dims[1] / s.groups), image(led(image_like->dims, 2, 1)), features(led(features_like->dims, 2, 1)),
        kernel(led(weight->dims, 2, 1)), stride(led(s.stride, 0, 1)),
        before(led(padding_before(s.padding, weight->dims.size() - 2), 0, 0)), dilation(led(s.dilation, 0, 1)) {}

  int64_t taps() const { return inner * elements(kernel); }
  int64_t lines() const { return features[0] * features[1]; }  // of features[2] places each
  int64_t lines_at_once() const { return std::clamp<int64_t>((4 << 20) / std::max<int64_t>(1, taps() * features[2]), 1, lines()); }
  bool is_plain() const {  // the unfolded image is the image
    return elements(kernel) == 1 && elements(stride) == 1 && before == Dims(AXES, 0) && features == image;
  }

  // Calls visit(row of the image, row of the unfolded image, first place, places, step, from) for every tap and line:
  // places [first, first + places) of the line see the row's elements from, from + step, ...; the others see padding.
  template <typename F>
  void taps_of(int64_t line, F visit) const {
    const int64_t a = line / features[1], b = line % features[1], width = features[2];
    int64_t tap = 0;
    for (int64_t c = 0; c < inner; c++)
      for (int64_t i = 0; i < kernel[0]; i++)
        for (int64_t j = 0; j < kernel[1]; j++)
          for (int64_t k = 0; k < kernel[2]; k++, tap++) {
            const int64_t x = a * stride[0] - before[0] + i * dilation[0], y = b * stride[1] - before[1] + j * dilation[1];
            const int64_t z = k * dilation[2] - before[2];  // place p sees z + p * stride[2]
            int64_t first = z >= 0 ? 0 : (-z + stride[2] - 1) / stride[2];
            int64_t behind = z >= image[2] ? 0 : std::min(width, (image[2] - 1 - z) / stride[2] + 1);
            if (x < 0 || x >= image[0] || y < 0 || y >= image[1] || first >= behind) first = behind = 0;
            visit(((c * image[0] + x) * image[1] + y) * image[2], tap, first, behind - first, z + first * stride[2]);
          }
  }
};

// (taps, places) of some lines of an image of one group.
void unfold(const Geometry &g, const float *image, int64_t from, int64_t lines, float *unfolded) {
  const int64_t width = g.features[2], places = lines * width, step = g.stride[2];
  for (int64_t line = 0; line < lines; line++)
    g.taps_of(from + line, [&](int64_t row, int64_t tap, int64_t first, int64_t count, int64_t start) {
      float *to = unfolded + tap * places + line * width;
      std::fill(to, to + first, 0.0f);
      if (count && step == 1) memcpy(to + first, image + row + start, size_t(count) * sizeof(float));
      else
        for (int64_t p = 0; p < count; p++) to[first + p] = image[row + start + p * step];
      std::fill(to + first + count, to + width, 0.0f);
    });
}

// The sum of what unfold reads, at the places that it reads from.
void fold(const Geometry &g, const float *unfolded, int64_t from, int64_t lines, float *image) {
  const int64_t width = g.features[2], places = lines * width, step = g.stride[2];
  for (int64_t line = 0; line < lines; line++)
    g.taps_of(from + line, [&](int64_t row, int64_t tap, int64_t first, int64_t count, int64_t start) {
      const float *source = unfolded + tap * places + line * width + first;
      for (int64_t p = 0; p < count; p++) image[row + start + p * step] += source[p];
    });
}

// Calls visit(image, group's weights as an offset, features, from, lines) for every image, group and few lines.
template <typename F>
void each_part(const Geometry &g, F visit) {
  const int64_t image = g.inner * elements(g.image), features = g.outer * elements(g.features);
  for (int64_t i = 0; i < g.images; i++)
    for (int64_t group = 0; group < g.groups; group++)
      for (int64_t from = 0; from < g.lines(); from += g.lines_at_once())
        visit((i * g.groups + group) * image, group * g.outer * g.taps(), (i * g.groups + group) * features, from,
              std::min(g.lines_at_once(), g.lines() - from));
}

// Some lines of features, (outer, places), out of and into all of them.
void take(const Geometry &g, const float *features, int64_t from, int64_t lines, float *part) {
  const int64_t width = g.features[2], all = elements(g.features), places = lines * width;
  for (int64_t o = 0; o < g.outer; o++) std::copy_n(features + o * all + from * width, places, part + o * places);
}
void put(const Geometry &g, const float *part, int64_t from, int64_t lines, float *features) {
  const int64_t width = g.features[2], all = elements(g.features), places = lines * width;
  for (int64_t o = 0; o < g.outer; o++) std::copy_n(part + o * places, places, features + o * all + from * width);
}

std::vector<float> features_of(const Geometry &g, const float *image, const float *weight) {
  std::vector<float> out(size_t(g.images * g.groups * g.outer * elements(g.features))), unfolded, part;
  each_part(g, [&](int64_t at, int64_t w, int64_t to, int64_t from, int64_t lines) {
    const int64_t places = lines * g.features[2];
    if (g.is_plain() && lines == g.lines())
      return multiply(false, false, g.outer, places, g.taps(), weight + w, image + at, out.data() + to);
    unfolded.resize(size_t(g.taps() * places)), part.resize(size_t(g.outer * places));
    unfold(g, image + at, from, lines, unfolded.data());
    multiply(false, false, g.outer, places, g.taps(), weight + w, unfolded.data(), part.data());
    put(g, part.data(), from, lines, out.data() + to);
  });
  return out;
}

std::vector<float> image_of(const Geometry &g, const float *features, const float *weight) {
  std::vector<float> out(size_t(g.images * g.groups * g.inner * elements(g.image)), 0.0f), unfolded, part;
  each_part(g, [&](int64_t to, int64_t w, int64_t at, int64_t from, int64_t lines) {
    const int64_t places = lines * g.features[2];
    unfolded.resize(size_t(g.taps() * places)), part.resize(size_t(g.outer * places));
    take(g, features + at, from, lines, part.data());
    multiply(true, false, g.taps(), places, g.outer, weight + w, part.data(), unfolded.data());
    fold(g, unfolded.data(), from, lines, out.data() + to);
  });
  return out;
}

std::vector<float> weight_of(const Geometry &g, const float *image, const float *features) {
  std::vector<float> out(size_t(g.groups * g.outer * g.taps()), 0.0f), unfolded, part, sum(size_t(g.outer * g.taps()));
  each_part(g, [&](int64_t at, int64_t to, int64_t other, int64_t from, int64_t lines) {
    const int64_t places = lines * g.features[2];
    unfolded.resize(size_t(g.taps() * places)), part.resize(size_t(g.outer * places));
    unfold(g, image + at, from, lines, unfolded.data());
    take(g, features + other, from, lines, part.data());
    multiply(false, true, g.outer, g.taps(), places, part.data(), unfolded.data(), sum.data());
    for (size_t i = 0; i < sum.size(); i++) out[size_t(to) + i] += sum[i];
  });
  return out;
}

bool within(const Dims &values, int64_t low, int64_t high) {
  return std::all_of(values.begin(), values.end(), [=](int64_t v) { return v >= low && v <= high; });
}
bool within(const Dims &values, int64_t low, int64_t high, size_t from) {
  return within(Dims(values.begin() + long(std::min(from, values.size())), values.end()), low, high);
}
bool is_padding(size_t given, size_t axes, bool transposed) {
  return given == axes || (given == 2 * axes && axes < 3 && !(axes == 1 && transposed));
}
bool has_no_empty(std::initializer_list<const Tensor *> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor *t) { return elements(t->dims) > 0; });
}

}  // namespace

// The page's column for the A2 says that float32 with cubeMathType 0 is not supported "for now", while CANN's own check
// of this operator refuses it only on cubes without float32, and conv.allow_hf32 = False is what its frameworks offer
// for exact float32. It is taken here.
ACLNN(Convolution, "ops-nn conv/convolution_forward/docs/aclnnConvolution.md", const Tensor *input, const Tensor *weight,
      const Tensor *bias, const IntArray *stride, const IntArray *padding, const IntArray *dilation, bool transposed,
      const IntArray *output_padding, int64_t groups, Tensor *output, int8_t math) {
  LAUNCH({input, weight, bias}, {output});
  NEED(product() != A1, "this product has no aclnnConvolution");
  NEED(all_floating({input, weight, bias, output}), "tensors are float32, float16 or bfloat16");
  NEED(output->dtype == promoted(input, weight), "output has the dtype that input and weight are multiplied in");
  NEED(!bias || (bias->dtype == input->dtype && bias->dtype == weight->dtype), "bias has the dtype of input and weight");
  const size_t rank = input->dims.size(), axes = rank - 2;
  NEED(rank >= 3 && rank <= 5, "input has 3 to 5 axes");
  NEED(weight->dims.size() == rank && output->dims.size() == rank, "input, weight and output have as many axes each");
  NEED(stride->values.size() == axes && within(stride->values, 1, INT64_MAX), "stride has a number over 0 for every axis");
  NEED(dilation->values.size() == axes && within(dilation->values, 1, INT64_MAX), "dilation has a number over 0 for every axis");
  NEED(is_padding(padding->values.size(), axes, transposed) && within(padding->values, 0, INT64_MAX),
       "padding has a number of at least 0 for every axis, or for every side of one or two axes");
  NEED(groups >= 1 && groups <= 65535, "groups is 1 to 65535");
  NEED(transposed ? weight->dims[0] == input->dims[1] : weight->dims[1] * groups == input->dims[1],
       "the channels of input are those of weight times groups");
  NEED(!transposed || (output_padding->values.size() == axes && within(output_padding->values, 0, INT64_MAX)),
       "outputPadding has a number of at least 0 for every axis");
  const Settings s{stride->values, padding->values, dilation->values, output_padding ? output_padding->values : Dims(axes, 0),
                   transposed, groups};
  for (size_t i = 0; i < axes && transposed; i++)
    NEED(s.more[i] < std::max(s.stride[i], s.dilation[i]), "outputPadding is less than stride or dilation");
  NEED(!bias || (bias->dims == Dims{transposed ? weight->dims[1] * groups : weight->dims[0]}),
       "bias has one axis, of the output's channels");
  NEED(within(input->dims, 0, 1000000) && within(weight->dims, 0, 1000000), "no axis is longer than 1000000");
  const size_t plane = axes == 3 ? 1 : 0;  // three axes: rules for height and width alone
  NEED(!transposed || within(weight->dims, 1, 255, 2 + plane), "a transposed convolution's kernel is at most 255 high and wide");
  NEED(transposed || axes < 3 || within(weight->dims, 1, 511, 3), "a kernel of three axes is at most 511 high and wide");
  NEED((transposed && axes < 3) || within(s.padding, 0, 255, plane), "padding is at most 255");
  NEED((!transposed && axes < 3) || within(s.dilation, 1, 255, transposed ? 0 : plane), "dilation is at most 255");
  NEED(axes < 3 || within(s.stride, 1, 63, 1), "stride of three axes is at most 63 in height and width");
  const Dims expected = output_dims(input, weight, s);
  NEED(within(expected, 1, INT64_MAX, 2), "the kernel is not larger than the padded input");
  NEED(output->dims == expected, "output has the shape that follows");
  NEED(math >= KEEP_DTYPE && math <= USE_HF32, "cubeMathType is 0, 1, 2 or 3");
  NEED(math != USE_FP16 || !any_is(BF16, {input, weight}), "bfloat16 is not multiplied with cubeMathType 2");
  return READY([=] {
    const Arithmetic how = arithmetic(math, promoted(input, weight));
    const Operand x(input, how), w(weight, how);
    std::vector<float> out = transposed ? image_of(Geometry(output, input, weight, s), x.data, w.data)
                                        : features_of(Geometry(input, output, weight, s), x.data, w.data);
    if (bias) {
      const std::vector<float> b = floats(bias);
      const size_t places = size_t(elements(Dims(output->dims.begin() + 2, output->dims.end())));
      for (size_t i = 0; i < out.size(); i++) out[i] += b[i / places % b.size()];
    }
    store(output, out);
  });
}

ACLNN(ConvolutionBackward, "ops-nn conv/convolution_backward/docs/aclnnConvolutionBackward.md", const Tensor *grad_output,
      const Tensor *input, const Tensor *weight, const IntArray *bias_sizes, const IntArray *stride, const IntArray *padding,
      const IntArray *dilation, bool transposed, const IntArray *output_padding, int groups, const BoolArray *mask, int8_t math,
      Tensor *grad_input, Tensor *grad_weight, Tensor *grad_bias) {
  LAUNCH({grad_output, input, weight}, {grad_input, grad_weight, grad_bias});
  NEED(all_floating({grad_output, input, weight}), "tensors are float32, float16 or bfloat16");
  NEED(product() != A1 || !any_is(BF16, {grad_output, input, weight}), "this product has no bfloat16");
  const size_t rank = input->dims.size(), axes = rank - 2;
  NEED(rank >= 3 && rank <= 5, "input has 3 to 5 axes");
  NEED(weight->dims.size() == rank && grad_output->dims.size() == rank, "input, weight and gradOutput have as many axes each");
  NEED(product() != A1 || axes < 3, "this product has gradients of convolutions of one or two axes only");
  NEED(stride->values.size() == axes && within(stride->values, 1, INT64_MAX), "stride has a number over 0 for every axis");
  NEED(dilation->values.size() == axes && within(dilation->values, 1, 255), "dilation has a number from 1 to 255 for every axis");
  NEED((padding->values.size() == axes || (axes == 2 && padding->values.size() == 4)) && within(padding->values, 0, INT64_MAX),
       "padding has a number of at least 0 for every axis, or for every side of two axes");
  NEED(output_padding->values.size() == axes && within(output_padding->values, 0, transposed ? INT64_MAX : 0),
       "outputPadding has a number for every axis, 0 unless transposed");
  NEED(groups >= 1 && groups <= 65535, "groups is 1 to 65535");
  NEED(transposed ? weight->dims[0] == input->dims[1] : weight->dims[1] * groups == input->dims[1],
       "the channels of input are those of weight times groups");
  const Settings s{stride->values, padding->values, dilation->values, output_padding->values, transposed, groups};
  const size_t plane = axes == 3 ? 1 : 0;
  NEED(has_no_empty({grad_output, input, weight}), "no tensor is empty");
  NEED(within(weight->dims, 1, 255, 2 + plane), "the kernel is at most 255 high and wide");
  NEED(within(s.padding, 0, 255, plane), "padding is at most 255");
  NEED(axes < 3 || within(s.stride, 1, 63, 1), "stride of three axes is at most 63 in height and width");
  NEED(grad_output->dims == output_dims(input, weight, s), "gradOutput has the shape of the convolution's output");
  NEED(mask->values.size() == 3, "outputMask has 3 elements");
  NEED(!mask->values[0] || (grad_input && same_dims(grad_input, input) && grad_input->dtype == input->dtype),
       "gradInput has the shape and dtype of input");
  NEED(!mask->values[1] || (grad_weight && same_dims(grad_weight, weight) && is_floating(grad_weight)),
       "gradWeight has the shape of weight");
  NEED(!mask->values[2] || (bias_sizes && bias_sizes->values == Dims{grad_output->dims[1]}), "biasSizes is the output's channels");
  NEED(!mask->values[2] || (grad_bias && grad_bias->dims == bias_sizes->values && grad_bias->dtype == grad_output->dtype),
       "gradBias has the shape of the bias and the dtype of gradOutput");
  NEED(math >= KEEP_DTYPE && math <= USE_HF32, "cubeMathType is 0, 1, 2 or 3");
  const int dtype = promoted(weight, promoted(grad_output, input) == input->dtype ? input : grad_output);
  NEED(product() != A1 || dtype != F32 || (math != KEEP_DTYPE && math != USE_HF32),
       "this product multiplies float32 only with cubeMathType 1 or 2, as float16");
  NEED(product() == A1 || math != USE_FP16 || dtype != BF16, "bfloat16 is not multiplied with cubeMathType 2");
  const std::vector<uint8_t> wanted = mask->values;
  return READY([=] {
    const Arithmetic how = arithmetic(math, dtype);
    const Operand dy(grad_output, how), x(input, how), w(weight, how);
    const Geometry g(transposed ? grad_output : input, transposed ? input : grad_output, weight, s);
    if (wanted[0]) store(grad_input, transposed ? features_of(g, dy.data, w.data) : image_of(g, dy.data, w.data));
    if (wanted[1]) store(grad_weight, transposed ? weight_of(g, dy.data, x.data) : weight_of(g, x.data, dy.data));
    if (!wanted[2]) return;
    const std::vector<float> gradient = floats(grad_output);
    const size_t channels = size_t(grad_output->dims[1]);
    const size_t places = size_t(elements(Dims(grad_output->dims.begin() + 2, grad_output->dims.end())));
    std::vector<double> sums(channels, 0);
    for (size_t i = 0; i < gradient.size(); i++) sums[i / places % channels] += double(gradient[i]);
    store(grad_bias, std::vector<float>(sums.begin(), sums.end()));
  });
}
