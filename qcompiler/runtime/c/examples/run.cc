// As run.c, in C++: errors are exceptions, and the model and its buffers release themselves.
#include <qc_runtime.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(qc_status status) {
  if (status != QC_OK) throw std::runtime_error(std::string(qc_status_text(status)) + ": " + qc_error());
}

struct Free {
  void operator()(qc_model *model) const { qc_free(model); }
  void operator()(void *memory) const { std::free(memory); }
};

using Model = std::unique_ptr<qc_model, Free>;

// Memory of one tensor, at a multiple of 64 bytes, so that the model reads it in place.
class Tensor {
 public:
  explicit Tensor(const qc_tensor_info &info)
      : memory_(std::aligned_alloc(64, (info.size / 64 + 1) * 64)), size_(info.size) {
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), 0, size_);
  }
  qc_buffer buffer() const { return {memory_.get(), size_}; }
  char *bytes() const { return static_cast<char *>(memory_.get()); }
  std::streamsize size() const { return static_cast<std::streamsize>(size_); }

 private:
  std::unique_ptr<void, Free> memory_;
  std::size_t size_;
};

Model load(const char *bundle) {
  qc_model *model = nullptr;
  check(qc_load(bundle, &model));
  return Model(model);
}

template <typename Count, typename Info>
std::vector<Tensor> tensors(const qc_model *model, const char *kind, Count count, Info info_of) {
  std::vector<Tensor> made;
  for (std::size_t i = 0; i < count(model); ++i) {
    qc_tensor_info info;
    check(info_of(model, i, &info));
    std::cout << kind << ' ' << info.name << ": " << info.dtype << ", " << info.size << " bytes\n";
    made.emplace_back(info);
  }
  return made;
}

std::vector<qc_buffer> buffers(const std::vector<Tensor> &tensors) {
  std::vector<qc_buffer> made;
  for (const Tensor &tensor : tensors) made.push_back(tensor.buffer());
  return made;
}

void run(const char *bundle, const char *output_file, const std::vector<const char *> &input_files) {
  const Model model = load(bundle);
  const std::vector<Tensor> inputs = tensors(model.get(), "input", qc_input_count, qc_input_info);
  const std::vector<Tensor> outputs = tensors(model.get(), "output", qc_output_count, qc_output_info);
  for (std::size_t i = 0; i < inputs.size() && i < input_files.size(); ++i) {
    std::ifstream file(input_files[i], std::ios::binary);
    if (!file.read(inputs[i].bytes(), inputs[i].size()))
      throw std::runtime_error(std::string(input_files[i]) + " is too short or cannot be read");
  }
  const std::vector<qc_buffer> in = buffers(inputs), out = buffers(outputs);
  check(qc_run(model.get(), in.data(), in.size(), out.data(), out.size()));
  if (!output_file) return;
  std::ofstream file(output_file, std::ios::binary);
  for (const Tensor &tensor : outputs) file.write(tensor.bytes(), tensor.size());
  if (!file.flush()) throw std::runtime_error(std::string(output_file) + " cannot be written");
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 2) {
    std::cerr << "usage: " << argv[0] << " BUNDLE [-o OUTPUT_FILE] [INPUT_FILE ...]\n";
    return 2;
  }
  const bool writes = argc > 3 && !std::strcmp(argv[2], "-o");
  try {
    run(argv[1], writes ? argv[3] : nullptr, {argv + (writes ? 4 : 2), argv + argc});
  } catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
