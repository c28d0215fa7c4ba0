// libacl_op_compiler.so of the stand-in: the operators that are compiled on line, the old path. It has none.
#include <string>

#include "standin.h"

extern "C" {
int aclopCompileAndExecuteV2(const char *op, int, void **, void **, int, void **, void **, void *, int, int, const char *,
                             void *) {
  standin_error((std::string("the operator ") + op +
                 " has no aclnn kernel and would be compiled on line, which the stand-in refuses").c_str());
  return 500001;
}
int aclopCompileAndExecute(const char *op, int, const void *const *, const void *const *, int, const void *const *,
                           void *const *, const void *, int, int, const char *, void *) {
  return aclopCompileAndExecuteV2(op, 0, nullptr, nullptr, 0, nullptr, nullptr, nullptr, 0, 0, nullptr, nullptr);
}
int aclGenGraphAndDumpForOp() { return 500001; }
}
