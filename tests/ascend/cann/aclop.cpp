// Of libascendcl.so: descriptions of operators of the old path, of which the stand-in has those of data sinking only.
#include "aclop.h"

extern "C" {

void *aclCreateTensorDesc(int dtype, int count, const int64_t *dims, int format) {
  return new TensorDescription{dtype, format, Dims(dims, dims + (dims ? count : 0))};
}
void aclDestroyTensorDesc(const void *description) { delete static_cast<const TensorDescription *>(description); }
size_t aclGetTensorDescNumDims(const void *description) {
  return static_cast<const TensorDescription *>(description)->dims.size();
}
size_t aclGetTensorDescSize(const void *description) {
  auto *tensor = static_cast<const TensorDescription *>(description);
  return size_t(elements(tensor->dims) * size_of(tensor->dtype));
}
int64_t aclGetTensorDescDim(const void *description, size_t index) {
  return static_cast<const TensorDescription *>(description)->dims.at(index);
}
int aclGetTensorDescDimV2(const void *description, size_t index, int64_t *size) {
  *size = aclGetTensorDescDim(description, index);
  return 0;
}
int aclSetTensorFormat(void *, int) { return 0; }
int aclSetTensorShape(void *, int, const int64_t *) { return 0; }
int aclSetTensorPlaceMent(void *, int) { return 0; }
int aclSetTensorConst(void *, void *, size_t) { return 0; }
void aclSetTensorDescName(void *, const char *) {}

void *aclCreateDataBuffer(void *data, size_t size) { return new DataBuffer{data, size}; }
int aclUpdateDataBuffer(void *buffer, void *data, size_t size) {
  *static_cast<DataBuffer *>(buffer) = {data, size};
  return 0;
}
int aclDestroyDataBuffer(const void *buffer) {
  delete static_cast<const DataBuffer *>(buffer);
  return 0;
}
void *aclGetDataBufferAddr(const void *buffer) { return static_cast<const DataBuffer *>(buffer)->data; }

void *aclopCreateAttr() { return new Attributes; }
void aclopDestroyAttr(const void *attributes) { delete static_cast<const Attributes *>(attributes); }
int aclopSetAttrString(void *attributes, const char *name, const char *value) {
  static_cast<Attributes *>(attributes)->texts[name] = value;
  return 0;
}
int aclopSetAttrBool(void *, const char *, uint8_t) { return 0; }
int aclopSetAttrDataType(void *, const char *, int) { return 0; }
int aclopSetAttrFloat(void *, const char *, float) { return 0; }
int aclopSetAttrInt(void *, const char *, int64_t) { return 0; }
int aclopSetAttrListBool(void *, const char *, int, const uint8_t *) { return 0; }
int aclopSetAttrListDataType(void *, const char *, int, const int *) { return 0; }
int aclopSetAttrListFloat(void *, const char *, int, const float *) { return 0; }
int aclopSetAttrListInt(void *, const char *, int, const int64_t *) { return 0; }
int aclopSetAttrListListInt(void *, const char *, int, const int *, const int64_t *const *) { return 0; }
int aclopSetAttrListString(void *, const char *, int, const char *const *) { return 0; }

// An operator may take memory from the allocator of its stream; those here take none.
void *aclrtAllocatorCreateDesc() { return new char; }
int aclrtAllocatorDestroyDesc(void *description) {
  delete static_cast<char *>(description);
  return 0;
}
int aclrtAllocatorSetObjToDesc(void *, void *) { return 0; }
int aclrtAllocatorSetAllocFuncToDesc(void *, void *) { return 0; }
int aclrtAllocatorSetFreeFuncToDesc(void *, void *) { return 0; }
int aclrtAllocatorSetAllocAdviseFuncToDesc(void *, void *) { return 0; }
int aclrtAllocatorSetGetAddrFromBlockFuncToDesc(void *, void *) { return 0; }
int aclrtAllocatorRegister(void *, void *) { return 0; }
int aclrtAllocatorUnregister(void *) { return 0; }
}
