// Writes on from token ids with an export of format torchscript: write MODEL.ts NUM_NEW_TOKENS ID [ID ...]
//
// Prints the likeliest token each time, and the speed at the end. Keys and values of earlier tokens are kept, so each
// step reads one new token.

#include <torch/script.h>

#include <chrono>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

torch::Tensor as_row(const std::vector<int64_t>& values) {
  return torch::tensor(values, torch::kLong).unsqueeze(0);
}

// The tensors of the past, as `empty_past` gives them or as they follow the logits.
std::vector<torch::IValue> tensors_of(const torch::IValue& tuple) {
  return tuple.toTuple()->elements().vec();
}

// Reads the new tokens; gives the likeliest token after them, and puts their keys and values into `past`.
int64_t next_token(torch::jit::Module& model, const std::vector<int64_t>& tokens, int64_t num_before,
                   std::vector<torch::IValue>& past) {
  const auto num_new = static_cast<int64_t>(tokens.size());
  std::vector<torch::IValue> inputs = {
      as_row(tokens),                                                                         // input_ids
      torch::ones({1, num_before + num_new}, torch::kLong),                                   // attention_mask
      torch::arange(num_before, num_before + num_new, torch::kLong).unsqueeze(0),             // position_ids
  };
  inputs.insert(inputs.end(), past.begin(), past.end());
  past = tensors_of(model.forward(inputs));
  const torch::Tensor logits = past.front().toTensor();
  past.erase(past.begin());
  return logits.select(1, num_new - 1).argmax(-1).item<int64_t>();
}

void write(const std::string& file, int num_new_tokens, std::vector<int64_t> tokens) {
  torch::InferenceMode no_gradients;
  torch::jit::setGraphExecutorOptimize(false);  // it would compile anew for lengths, and decode no faster
  torch::jit::Module model = torch::jit::load(file, torch::kCPU);
  model.eval();
  std::vector<torch::IValue> past = tensors_of(model.get_method("empty_past")({as_row(tokens)}));
  int64_t num_before = 0;
  std::chrono::steady_clock::time_point after_first;
  for (int number = 0; number < num_new_tokens; ++number) {
    const int64_t token = next_token(model, tokens, num_before, past);
    std::cout << token << ' ' << std::flush;
    num_before += static_cast<int64_t>(tokens.size());
    tokens = {token};
    if (number == 0) after_first = std::chrono::steady_clock::now();
  }
  std::cout << std::endl;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - after_first;
  if (num_new_tokens > 1) std::cerr << (num_new_tokens - 1) / seconds.count() << " tokens a second\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 4) throw std::invalid_argument("usage: write MODEL.ts NUM_NEW_TOKENS ID [ID ...]");
    std::vector<int64_t> tokens;
    for (int number = 3; number < argc; ++number) tokens.push_back(std::stoll(argv[number]));
    write(argv[1], std::stoi(argv[2]), tokens);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
