// libacl_op_compiler.so of the stand-in: operators that are launched by name, the old path.
//
// It has none of those that would be compiled on line, but the two of data sinking, which CANN runs on the card's own CPU
// and which have no aclnn kernel: InitData, which has nothing to do here, and GetNext.
#include <dlfcn.h>

#include <string>
#include <vector>

#include "aclop.h"

namespace {

int refuse(const std::string &sentence) {
  standin_error(sentence.c_str());
  return 500001;
}

int next(int count, const void *const *buffers, const void *attributes, void *stream) {
  auto &texts = static_cast<const Attributes *>(attributes)->texts;
  auto channel = texts.find("channel_name");
  if (channel == texts.end()) return refuse("GetNext: it has no channel_name");
  void *library = dlopen("libacl_tdt_channel.so", RTLD_LAZY | RTLD_NOLOAD);
  auto *take = library ? reinterpret_cast<int (*)(const char *, size_t, void *const *, const size_t *)>(
                             dlsym(library, "standin_next"))
                       : nullptr;
  if (!take) return refuse("GetNext: there is no libacl_tdt_channel.so");
  std::vector<void *> outputs;
  std::vector<size_t> sizes;
  size_t bytes = 0;
  for (int i = 0; i < count; i++) {
    auto *buffer = static_cast<const DataBuffer *>(buffers[i]);
    outputs.push_back(buffer->data);
    sizes.push_back(buffer->size);
    bytes += buffer->size;
  }
  standin_trace_launch("GetNext", ("\"bytes\": " + std::to_string(bytes)).c_str(), stream);
  return take(channel->second.c_str(), size_t(count), outputs.data(), sizes.data());
}

}  // namespace

extern "C" {
int aclopCompileAndExecute(const char *op, int, const void *const *, const void *const *, int outputs, const void *const *,
                           void *const *buffers, const void *attributes, int, int, const char *, void *stream) {
  if (std::string(op) == "InitData") return 0;
  if (std::string(op) == "GetNext") return next(outputs, buffers, attributes, stream);
  return refuse(std::string("the operator ") + op +
                " has no aclnn kernel and would be compiled on line, which the stand-in refuses");
}
int aclopCompileAndExecuteV2(const char *op, int inputs, void **input_descriptions, void **input_buffers, int outputs,
                             void **descriptions, void **buffers, void *attributes, int engine, int compile, const char *path,
                             void *stream) {
  return aclopCompileAndExecute(op, inputs, input_descriptions, input_buffers, outputs, descriptions, buffers, attributes, engine,
                                compile, path, stream);
}
int aclGenGraphAndDumpForOp() { return 500001; }
}
