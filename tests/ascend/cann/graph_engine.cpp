// libge_runner.so of the stand-in: MindSpore registers names in it when it is loaded, and uses no more of it at O0 and O1.
//
// Except for the two operators of data sinking, which have no aclnn kernel: before it launches them by name it makes an
// object of each.
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
extern "C" bool _ZN2ge15OperatorFactory9IsExistOpERKSs(const std::string &type) {
  return type == "InitData" || type == "GetNext";
}
extern "C" bool _ZN2ge15OperatorFactory9IsExistOpEPKc(const char *type) {
  return _ZN2ge15OperatorFactory9IsExistOpERKSs(type);
}
extern "C" Operator _ZN2ge15OperatorFactory14CreateOperatorERKSsS2_(const std::string &, const std::string &) {
  return Operator();
}
extern "C" Operator _ZN2ge15OperatorFactory14CreateOperatorEPKcS2_(const char *, const char *) { return Operator(); }
