// What describes an operator of the old path: tensors, their data, and attributes by name.
#pragma once
#include <map>
#include <string>

#include "standin.h"

struct TensorDescription {
  int dtype, format;
  Dims dims;
};
struct DataBuffer {
  void *data;
  size_t size;
};
struct Attributes {
  std::map<std::string, std::string> texts;  // the others are of no use here
};
