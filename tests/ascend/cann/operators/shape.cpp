// Operators that only move elements: copies, fills, joins, cuts and look-ups.
#include <algorithm>

#include "standin.h"

namespace {

bool is_known(const Tensor *t) { return is_floating(t) || is_one_of(t, {BOOL, U8, I8, I16, I32, I64, F64}); }
int64_t axis_of(int64_t axis, const Tensor *t) { return axis < 0 ? axis + int64_t(t->dims.size()) : axis; }
bool has_axis(int64_t axis, const Tensor *t) { return axis_of(axis, t) >= 0 && axis_of(axis, t) < int64_t(t->dims.size()); }

Dims with(Dims dims, int64_t axis, int64_t length) {
  dims[size_t(axis)] = length;
  return dims;
}

// A view of t: `length` elements of an axis from `start`, every `step`-th.
Tensor narrowed(const Tensor *t, int64_t axis, int64_t start, int64_t length, int64_t step = 1) {
  Tensor view = *t;
  view.offset += start * t->strides[size_t(axis)];
  view.dims[size_t(axis)] = length;
  view.strides[size_t(axis)] *= step;
  return view;
}

Tensor permuted(const Tensor *t, const Dims &order) {
  Tensor view = *t;
  for (size_t k = 0; k < order.size(); k++) {
    view.dims[k] = t->dims[size_t(axis_of(order[k], t))];
    view.strides[k] = t->strides[size_t(axis_of(order[k], t))];
  }
  return view;
}

bool is_order(const IntArray *order, const Tensor *t) {
  std::vector<bool> seen(t->dims.size(), false);
  if (order->values.size() != t->dims.size()) return false;
  for (int64_t axis : order->values) {
    if (!has_axis(axis, t) || seen[size_t(axis_of(axis, t))]) return false;
    seen[size_t(axis_of(axis, t))] = true;
  }
  return true;
}

bool within(const Tensor *index, int64_t length) {
  for (int64_t i : integers(index))
    if (i < 0 || i >= length) return false;
  return true;
}

void fill(Tensor *t, double number, int64_t integer) {
  const size_t n = size_t(elements(t->dims));
  if (is_floating(t)) store(t, std::vector<float>(n, float(number)));
  else store(t, std::vector<int64_t>(n, integer));
}

// Fills the tensors of a list with the parts of a along an axis, one after the other.
void cut(const Tensor *a, int64_t axis, const TensorList *parts) {
  int64_t start = 0;
  for (Tensor *part : parts->values) {
    const Tensor view = narrowed(a, axis, start, part->dims[size_t(axis)]);
    copy(&view, part);
    start += part->dims[size_t(axis)];
  }
}

// Rows of a matrix (rows, width) one after the other, by index.
void gather_rows(const Tensor *table, const Tensor *index, int64_t axis, Tensor *out) {
  const std::vector<int64_t> chosen = integers(index);
  for (size_t i = 0; i < chosen.size(); i++) {
    Tensor from = narrowed(table, axis, chosen[i], 1), to = narrowed(out, axis, int64_t(i), 1);
    copy(&from, &to);
  }
}

}  // namespace

ACLNN(InplaceCopy, "ops-math conversion/view_copy/docs/aclnnInplaceCopy.md", Tensor *to, const Tensor *from) {
  LAUNCH({from}, {to});
  NEED(is_known(to) && is_known(from), "tensors are floats, integers or bool");
  NEED(broadcast(from->dims, to->dims) == to->dims, "src broadcasts to the shape of self");
  return READY([=] { copy(from, to); });
}

ACLNN(Permute, "ops-math conversion/transpose/docs/aclnnPermute.md", const Tensor *a, const IntArray *order, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(is_order(order, a), "dims name every axis of self once");
  NEED(permuted(a, order->values).dims == out->dims, "out has the shape of self in the order of dims");
  return READY([=] {
    const Tensor view = permuted(a, order->values);
    copy(&view, out);
  });
}

ACLNN(Expand, "ops-math math/expand/docs/aclnnExpand.md", const Tensor *a, const IntArray *size, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(size->values.size() == out->dims.size(), "size has as many axes as out");
  NEED(broadcast(a->dims, out->dims) == out->dims, "self broadcasts to size");
  return READY([=] { copy(a, out); });
}

ACLNN(Repeat, "ops-math math/tile/docs/aclnnRepeat.md", const Tensor *a, const IntArray *repeats, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(repeats->values.size() >= a->dims.size() && repeats->values.size() == out->dims.size(), "repeats has an entry per axis");
  NEED(std::count_if(repeats->values.begin(), repeats->values.end(), [](int64_t n) { return n > 1; }) <= 4,
       "at most 4 axes are repeated");
  Tensor wide = *a;  // with axes of length 1 in front
  while (wide.dims.size() < out->dims.size()) {
    wide.dims.insert(wide.dims.begin(), 1);
    wide.strides.insert(wide.strides.begin(), 0);
  }
  for (size_t k = 0; k < out->dims.size(); k++)
    NEED(out->dims[k] == wide.dims[k] * repeats->values[k], "out has the shape of self times repeats");
  return READY([=] {
    Tensor from = wide, to = *out;  // axis k of out is (repeats, axis of self): both as axes of their own
    Dims dims, source, target;
    for (size_t k = 0; k < out->dims.size(); k++) {
      dims.insert(dims.end(), {repeats->values[k], wide.dims[k]});
      source.insert(source.end(), {0, wide.strides[k]});
      target.insert(target.end(), {out->strides[k] * wide.dims[k], out->strides[k]});
    }
    from.dims = to.dims = dims;
    from.strides = source;
    to.strides = target;
    from.data = a->data;
    to.data = out->data;
    copy(&from, &to);
  });
}

ACLNN(Cat, "ops-math conversion/concat_d/docs/aclnnCat.md", const TensorList *tensors, int64_t dim, Tensor *out) {
  LAUNCH(all_of(tensors), {out});
  NEED(!tensors->values.empty(), "there is at least one tensor");
  NEED(has_axis(dim, out), "dim is an axis of the tensors");
  const int64_t axis = axis_of(dim, out);
  int64_t length = 0;
  for (const Tensor *t : tensors->values) {
    NEED(is_known(t) && t->dims.size() == out->dims.size(), "all tensors have as many axes as out");
    NEED(with(t->dims, axis, 1) == with(out->dims, axis, 1), "all tensors have the shape of out but for dim");
    length += t->dims[size_t(axis)];
  }
  NEED(length == out->dims[size_t(axis)], "the lengths along dim add up to that of out");
  return READY([=] {
    int64_t start = 0;
    for (const Tensor *t : tensors->values) {
      Tensor to = narrowed(out, axis, start, t->dims[size_t(axis)]);
      copy(t, &to);
      start += t->dims[size_t(axis)];
    }
  });
}

ACLNN(Stack, "ops-math conversion/pack/docs/aclnnStack.md", const TensorList *tensors, int64_t dim, Tensor *out) {
  LAUNCH(all_of(tensors), {out});
  NEED(!tensors->values.empty(), "there is at least one tensor");
  NEED(has_axis(dim, out), "dim is an axis of out");
  const int64_t axis = axis_of(dim, out);
  Dims inner = out->dims;
  inner.erase(inner.begin() + axis);
  for (const Tensor *t : tensors->values) NEED(t->dims == inner, "all tensors have the shape of out without dim");
  NEED(int64_t(tensors->values.size()) == out->dims[size_t(axis)], "out has as many entries along dim as there are tensors");
  return READY([=] {
    for (size_t i = 0; i < tensors->values.size(); i++) {
      Tensor to = narrowed(out, axis, int64_t(i), 1);
      to.dims.erase(to.dims.begin() + axis);
      to.strides.erase(to.strides.begin() + axis);
      copy(tensors->values[i], &to);
    }
  });
}

ACLNN(Slice, "ops-math conversion/slice/docs/aclnnSlice.md", const Tensor *a, int64_t dim, int64_t start, int64_t end,
      int64_t step, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(has_axis(dim, a), "dim is an axis of self");
  NEED(step > 0, "step is above 0");
  const int64_t axis = axis_of(dim, a), length = a->dims[size_t(axis)];
  const int64_t first = std::clamp<int64_t>(start < 0 ? start + length : start, 0, length);
  const int64_t last = std::clamp<int64_t>(end < 0 ? end + length : end, first, length);
  NEED(out->dims == with(a->dims, axis, (last - first + step - 1) / step), "out has the shape of the slice");
  return READY([=] {
    const Tensor view = narrowed(a, axis, first, out->dims[size_t(axis)], step);
    copy(&view, out);
  });
}

ACLNN(SplitTensor, "ops-math conversion/split_v/docs/aclnnSplitTensor.md", const Tensor *a, uint64_t sections, int64_t dim,
      TensorList *out) {
  LAUNCH({a}, all_of(out));
  NEED(has_axis(dim, a), "dim is an axis of self");
  const int64_t axis = axis_of(dim, a);
  int64_t start = 0;
  for (const Tensor *t : out->values) {
    NEED(t->dims == with(a->dims, axis, std::min<int64_t>(int64_t(sections), a->dims[size_t(axis)] - start)),
         "the outputs are the parts of self");
    start += t->dims[size_t(axis)];
  }
  return READY([=] { cut(a, axis, out); });
}

ACLNN(SplitWithSize, "ops-math conversion/split_v/docs/aclnnSplitWithSize.md", const Tensor *a, const IntArray *sizes,
      int64_t dim, TensorList *out) {
  LAUNCH({a}, all_of(out));
  NEED(has_axis(dim, a), "dim is an axis of self");
  const int64_t axis = axis_of(dim, a);
  int64_t total = 0;
  NEED(sizes->values.size() == out->values.size(), "there are as many outputs as sizes");
  for (size_t i = 0; i < sizes->values.size(); i++) {
    NEED(out->values[i]->dims == with(a->dims, axis, sizes->values[i]), "the outputs are the parts of self");
    total += sizes->values[i];
  }
  NEED(total == a->dims[size_t(axis)], "the sizes add up to the length of dim");
  return READY([=] { cut(a, axis, out); });
}

ACLNN(ConstantPadNd, "ops-math conversion/pad_v3/docs/aclnnConstantPadNd.md", const Tensor *a, const IntArray *pad,
      const Scalar *value, Tensor *out) {
  LAUNCH({a}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(pad->values.size() % 2 == 0 && pad->values.size() <= 2 * a->dims.size(), "pad has two entries per axis from the last");
  Dims expected = a->dims;
  for (size_t i = 0; i < pad->values.size(); i += 2) {
    int64_t &length = expected[a->dims.size() - 1 - i / 2];
    length += pad->values[i] + pad->values[i + 1];
    NEED(length >= 0, "a negative pad leaves no length below 0");
  }
  NEED(out->dims == expected, "out has the shape of self and its padding");
  const double number = value->number;
  const int64_t integer = value->integer;
  return READY([=] {
    fill(out, number, integer);
    Tensor from = *a, to = *out;  // what stays of self, and where; a negative pad cuts
    for (size_t i = 0; i < pad->values.size(); i += 2) {
      const int64_t axis = int64_t(a->dims.size() - 1 - i / 2), before = pad->values[i], after = pad->values[i + 1];
      const int64_t kept = a->dims[size_t(axis)] + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0);
      if (kept <= 0) return;
      from = narrowed(&from, axis, std::max<int64_t>(-before, 0), kept);
      to = narrowed(&to, axis, std::max<int64_t>(before, 0), kept);
    }
    copy(&from, &to);
  });
}

ACLNN(InplaceZero, "ops-math math/zero_op/docs/aclnnInplaceZero.md", Tensor *a) {
  LAUNCH({}, {a});
  NEED(is_known(a), "self is a float, an integer or bool");
  return READY([=] { fill(a, 0, 0); });
}

ACLNN(InplaceOne, "ops-math math/ones_like/docs/aclnnInplaceOne.md", Tensor *a) {
  LAUNCH({}, {a});
  NEED(is_known(a), "self is a float, an integer or bool");
  return READY([=] { fill(a, 1, 1); });
}

ACLNN(InplaceFillScalar, "ops-math conversion/fill/docs/aclnnInplaceFillScalar.md", Tensor *a, const Scalar *value) {
  LAUNCH({}, {a});
  NEED(is_known(a), "self is a float, an integer or bool");
  const double number = value->number;
  const int64_t integer = value->integer;
  return READY([=] { fill(a, number, integer); });
}

ACLNN(InplaceFillTensor, "ops-math conversion/fill/docs/aclnnInplaceFillTensor.md", Tensor *a, const Tensor *value) {
  LAUNCH({value}, {a});
  NEED(is_known(a), "self is a float, an integer or bool");
  NEED(elements(value->dims) == 1, "value is one element");
  return READY([=] {
    Tensor one = *value;
    one.dims = one.strides = {};
    copy(&one, a);
  });
}

ACLNN(IndexAdd, "ops-nn index/inplace_scatter_add/docs/aclnnIndexAdd.md", const Tensor *a, int64_t dim, const Tensor *index,
      const Tensor *source, const Scalar *alpha, Tensor *out) {
  LAUNCH({a, index, source}, {out});
  NEED(is_floating(a) && a->dtype == out->dtype && a->dtype == source->dtype, "all tensors have one dtype of floats");
  NEED(same_dims(a, out), "out has the shape of self");
  NEED(has_axis(dim, a) && axis_of(dim, a) == 0, "the stand-in adds along axis 0 only");
  NEED(is_one_of(index, {I32, I64}) && index->dims.size() <= 1, "index is int32 or int64 with at most one axis");
  NEED(source->dims == with(a->dims, 0, elements(index->dims)), "source has the shape of self with the length of index");
  const double factor = alpha->number;
  return READY([=] {
    const std::vector<int64_t> chosen = integers(index);
    const std::vector<float> added = floats(source);
    std::vector<float> result = floats(a);
    const size_t width = result.size() / size_t(a->dims[0]);
    for (size_t i = 0; i < chosen.size(); i++)
      for (size_t k = 0; k < width; k++) result.at(size_t(chosen[i]) * width + k) += float(factor) * added[i * width + k];
    store(out, result);
  });
}

ACLNN(IndexSelect, "ops-nn index/gather_v2/docs/aclnnIndexSelect.md", const Tensor *a, int64_t dim, const Tensor *index,
      Tensor *out) {
  LAUNCH({a, index}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(has_axis(dim, a), "dim is an axis of self");
  NEED(is_one_of(index, {I32, I64}) && index->dims.size() <= 1, "index is int32 or int64 with at most one axis");
  const int64_t axis = axis_of(dim, a);
  NEED(out->dims == with(a->dims, axis, elements(index->dims)), "out has the shape of self with the length of index");
  return READY([=] {
    if (within(index, a->dims[size_t(axis)])) return gather_rows(a, index, axis, out);
    fill(out, NAN, -1);  // what lies outside is not said; here it is seen
  });
}

ACLNN(Gather, "ops-nn index/gather_elements_v2/docs/aclnnGather.md", const Tensor *a, int64_t dim, const Tensor *index,
      Tensor *out) {
  LAUNCH({a, index}, {out});
  NEED(is_known(a) && a->dtype == out->dtype, "out has the dtype of self");
  NEED(has_axis(dim, a) && index->dims.size() == a->dims.size(), "index has as many axes as self");
  NEED(is_one_of(index, {I32, I64}) && same_dims(index, out), "index is int32 or int64 and has the shape of out");
  const size_t axis = size_t(axis_of(dim, a));
  return READY([=] {
    const std::vector<int64_t> chosen = integers(index);
    const std::vector<float> values = floats(a);
    std::vector<float> result(chosen.size());
    Dims at(a->dims.size(), 0);
    for (size_t i = 0; i < chosen.size(); i++) {
      int64_t p = 0;
      for (size_t k = 0; k < at.size(); k++) p = p * a->dims[k] + (k == axis ? chosen[i] + (chosen[i] < 0) * a->dims[k] : at[k]);
      result[i] = values[size_t(p)];
      for (size_t k = at.size(); k-- > 0;) {
        if (++at[k] < index->dims[k]) break;
        at[k] = 0;
      }
    }
    store(out, result);
  });
}

ACLNN(Arange, "ops-math math/range/docs/aclnnArange.md", const Scalar *start, const Scalar *end, const Scalar *step,
      Tensor *out) {
  LAUNCH({}, {out});
  NEED(step->number != 0, "step is not 0");
  NEED((end->number - start->number) * step->number >= 0, "end lies in the direction of step");
  NEED(elements(out->dims) == int64_t(std::ceil((end->number - start->number) / step->number)), "out has an element per step");
  const double first = start->number, by = step->number;
  return READY([=] {
    std::vector<int64_t> whole(size_t(elements(out->dims)));
    std::vector<float> values(whole.size());
    for (size_t i = 0; i < values.size(); i++) {
      values[i] = float(first + by * double(i));
      whole[i] = int64_t(first + by * double(i));
    }
    if (is_floating(out)) store(out, values);
    else store(out, whole);
  });
}
