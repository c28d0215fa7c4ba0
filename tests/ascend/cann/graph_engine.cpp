// libge_runner.so of the stand-in: MindSpore registers names in it when it is loaded, and uses no more of it at O0 and O1.
//
// Except for operators of the old path: before MindSpore launches one by name it makes an object of it. All of them can be
// made, so that it is the launch (compiler.cpp) that refuses those that the stand-in lacks.
#include <map>
#include <memory>
#include <string>

namespace ge {
class Operator {  // what MindSpore has of it: a table of virtual functions and two pointers
 public:
  virtual ~Operator() = default;

 private:
  std::shared_ptr<void> nothing;
};
}  // namespace ge
using ge::Operator;

extern "C" void *_ZN2ge13StatusFactory8InstanceEv() {
  static struct {
    std::map<unsigned, std::string> messages;
    char room[256];
  } one;
  return &one;
}
extern "C" bool _ZN2ge15OperatorFactory9IsExistOpERKSs(const std::string &) { return true; }
extern "C" bool _ZN2ge15OperatorFactory9IsExistOpEPKc(const char *) { return true; }
extern "C" Operator _ZN2ge15OperatorFactory14CreateOperatorERKSsS2_(const std::string &, const std::string &) {
  return Operator();
}
extern "C" Operator _ZN2ge15OperatorFactory14CreateOperatorEPKcS2_(const char *, const char *) { return Operator(); }
