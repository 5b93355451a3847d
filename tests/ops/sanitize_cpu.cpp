// Runs the CPU operators over odd sizes and odd numbers, for the sanitizers: see scripts/sanitize_ops.sh. Every array
// has exactly the size that the interface asks for, so that one element too far is seen.

#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../mask2former/ops/csrc/ms_deform_attn.cpp"

namespace {

using Limits = std::numeric_limits<float>;
constexpr float kOdd[] = {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), Limits::denorm_min(),
                          1e30f, -1e30f, 3e9f, -3e9f, -1.0f, 0.0f, 1.0f, 2147483648.0f};

std::mt19937 generator(0);

std::vector<float> draw(size_t count, float odd_share) {
  std::uniform_real_distribution<float> number(-3.0f, 3.0f), share(0.0f, 1.0f);
  std::vector<float> numbers(count);
  for (float& x : numbers) {
    const float odd = kOdd[generator() % (sizeof kOdd / sizeof *kOdd)];
    x = share(generator) < odd_share ? odd : number(generator);
  }
  return numbers;
}

template <class T>
std::vector<T> convert(const std::vector<float>& numbers) {
  std::vector<T> converted(numbers.size());
  for (size_t k = 0; k < numbers.size(); ++k) store(&converted[k], numbers[k]);
  return converted;
}

template <class T>
int run(Problem p, ValueType type, bool fused, float odd_share) {
  const auto size = [](auto... sides) { return static_cast<size_t>((int64_t{1} * ... * sides)); };
  const size_t points = size(p.batch, p.queries, p.heads, p.levels, p.points);
  const auto value = convert<T>(draw(size(p.batch, p.cells, p.heads, p.channels), odd_share));
  const auto grad = convert<T>(draw(size(p.batch, p.queries, p.heads, p.channels), odd_share));
  const auto positions = draw(2 * points, odd_share), weights = draw(points, odd_share);
  const auto reference = draw(size(p.reference_batch, p.queries, p.reference_levels, int64_t{2}), odd_share);
  std::vector<T> out(grad.size());
  std::vector<float> grad_value(value.size()), grad_positions(2 * points), grad_weights(points);
  p.value_type = type;
  p.value = value.data();
  p.positions = positions.data();
  p.weights = weights.data();
  p.reference = fused ? reference.data() : nullptr;
  return ms_deform_attn_forward(&p, out.data()) |
         ms_deform_attn_backward(&p, grad.data(), grad_value.data(), grad_positions.data(), grad_weights.data());
}

int run_all(Problem p) {
  int failures = 0;
  for (const float odd_share : {0.0f, 0.3f})
    for (const bool fused : {false, true})
      failures += run<float>(p, kFloat32, fused, odd_share) + run<Half>(p, kFloat16, fused, odd_share) +
                  run<BFloat16>(p, kBFloat16, fused, odd_share);
  return failures;
}

}  // namespace

int main() {
  const std::vector<std::vector<int64_t>> all_shapes = {{1, 1}, {3, 4, 0, 5, 1, 7}, {5, 6, 2, 1, 1, 1, 9, 2}, {0, 0}};
  int runs = 0, failures = 0;
  for (const auto& shapes : all_shapes)
    for (const int64_t channels : {1, 3, 8, 17, 32, 41})
      for (const int64_t heads : {1, 2, 5})
        for (const int64_t points : {1, 4, 50})
          for (const int64_t threads : {1, 3, 7}) {
            const int64_t levels = static_cast<int64_t>(shapes.size()) / 2, batch = 1 + channels % 2;
            int64_t cells = 0;
            for (size_t l = 0; l < shapes.size(); l += 2) cells += shapes[l] * shapes[l + 1];
            Problem p{batch, cells, 5, heads, levels, points, channels, 1, 1, 0, threads, shapes.data(),
                      nullptr, nullptr, nullptr, nullptr};
            failures += run_all(p);
            p.reference_batch = batch;
            p.reference_levels = levels;
            failures += run_all(p);
            runs += 2;
          }
  std::printf("%d problems, %d failures\n", runs, failures);
  return failures != 0;
}
