// Checks the kernels against float64 on random problems, and times them.
//   mtgr_check check [cases [kernel]]   random ragged problems, poisoned rows, repeated runs, of
//   all
//       kernels or of one: attention, norm, linear, tail
//   mtgr_check bench           the figures of the READMEs
//   mtgr_check linear [cases]  the same two for the products alone
//   mtgr_check tail [cases]    and for a layer's end
//   mtgr_check run B H K [replays [pause]]
//       one attention problem, twice, for a profiler; then that many replays of a graph of ten
//       calls, `pause` milliseconds of rest before each, and the median time of a call
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "attention_case.h"
#include "device.h"
#include "linear_check.h"
#include "norm_check.h"
#include "tail_check.h"

namespace check {
namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

AttentionShape random_shape(uint64_t seed) {
  std::mt19937_64 random(seed);
  auto below = [&](int n) { return int(random() % n); };
  constexpr int kEdges[] = {0, 1, 15, 16, 31, 32, 63, 64, 65, 127, 128, 129, 191, 193, 256, 300};
  auto length = [&](int most) {
    const int value = below(2) ? kEdges[below(16)] : below(most);
    return std::min(value, most);
  };
  AttentionShape shape;
  shape.dtype = below(2) ? MTGR_FLOAT16 : MTGR_BFLOAT16;
  constexpr int kDims[] = {256, 256, 256, 32, 64, 128};
  shape.head_dim = kDims[below(6)];
  shape.kv_heads = 1 + below(2);
  shape.heads = shape.kv_heads * (1 + below(3));
  shape.first_query_segment = below(3);
  shape.uniform = below(3) == 0;
  const int batch = below(8) == 0 ? 40 + below(30) : 1 + below(5);
  for (int b = 0; b < batch; ++b) {
    shape.lengths[0].push_back(length(batch > 5 ? 100 : 700));
    shape.lengths[1].push_back(length(batch > 5 ? 30 : 200));
    shape.lengths[2].push_back(length(batch > 5 ? 50 : 400));
  }
  for (int& rows : shape.padding) rows = below(2) * below(90);
  return shape;
}

std::string describe(const AttentionShape& s, uint64_t seed) {
  return "seed " + std::to_string(seed) + " head_dim " + std::to_string(s.head_dim) + " heads " +
         std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " first " +
         std::to_string(s.first_query_segment) + " batch " + std::to_string(s.lengths[0].size()) +
         (s.dtype == MTGR_FLOAT16 ? " fp16" : " bf16");
}

void check_attention(int cases) {
  double worst[3] = {};
  for (int seed = 0; seed < cases; ++seed) {
    const auto shape = random_shape(seed);
    AttentionCase problem(shape, seed);
    problem.poison(-1);
    problem.run();
    const double error = problem.error();
    worst[shape.dtype] = std::max(worst[shape.dtype], error);
    const double limit = shape.dtype == MTGR_FLOAT16 ? 1e-3 : 6e-3;
    expect(error < limit, describe(shape, seed) + ": error " + std::to_string(error));

    // NaN in one request leaves every other row as it was.
    const auto clean = problem.output();
    const int victim = seed % int(shape.lengths[0].size());
    problem.poison(victim);
    problem.run();
    const auto hurt = problem.output();
    const auto requests = problem.query_requests();
    bool same = true;
    for (size_t row = 0; row < requests.size() && same; ++row)
      same = requests[row] == victim ||
             std::memcmp(&clean[row * problem.row_elements()], &hurt[row * problem.row_elements()],
                         problem.row_elements() * 2) == 0;
    expect(same, describe(shape, seed) + ": NaN reached another request");
  }
  std::printf("attention: %d cases, worst error fp16 %.2e bf16 %.2e\n", cases, worst[MTGR_FLOAT16],
              worst[MTGR_BFLOAT16]);
}

AttentionShape serving_shape(int batch, int heads, int candidates, bool uniform) {
  AttentionShape shape;
  shape.heads = shape.kv_heads = heads;
  shape.uniform = uniform;
  shape.lengths[0].assign(batch, 1100);
  shape.lengths[1].assign(batch, 100);
  shape.lengths[2].assign(batch, candidates);
  return shape;
}

void check_repeats(int runs) {
  AttentionCase problem(serving_shape(2, 3, 300, false), 1);
  problem.run();
  const auto first = problem.output();
  bool same = true;
  for (int i = 1; i < runs && same; ++i) {
    problem.run();
    same = problem.output() == first;
  }
  expect(same, "attention: repeated runs differ");
  std::printf("attention: %d runs bitwise equal: %s\n", runs, same ? "yes" : "no");
}

void bench_attention() {
  const struct {
    int batch, heads, candidates;
    double target;
  } rows[] = {{1, 3, 500, 22}, {1, 3, 100, 17}, {1, 2, 500, 18},
              {8, 3, 500, 88}, {8, 3, 100, 62}, {32, 3, 500, 330}};
  std::printf(
      "attention bf16, head dim 256, S+U 1100, R 100\n"
      "  B H   K |  uniform us  TFLOP/s | per-row us | target us | error\n");
  for (const auto& row : rows) {
    double us[2], error = 0, flops = 0;
    for (int uneven = 0; uneven < 2; ++uneven) {
      AttentionCase problem(serving_shape(row.batch, row.heads, row.candidates, !uneven), 7);
      problem.run();
      if (row.batch <= 8 && uneven) error = problem.error();
      us[uneven] = median_us([&](cudaStream_t stream) { problem.launch(stream); });
      flops = problem.useful_flops();
    }
    std::printf(" %2d %d %3d | %8.2f %8.0f | %8.2f | %6.0f | %.1e\n", row.batch, row.heads,
                row.candidates, us[0], flops / us[0] * 1e-6, us[1], row.target, error);
  }
}

void run_one(int batch, int heads, int candidates, int replays, int pause_ms) {
  AttentionCase problem(serving_shape(batch, heads, candidates, true), 7);
  for (int i = 0; i < 2; ++i) problem.run();
  std::printf("error %.2e\n", problem.error());
  if (replays <= 0) return;
  std::fflush(stdout);  // whoever watches the card's power sees when the replays begin
  const double us =
      median_us([&](cudaStream_t stream) { problem.launch(stream); }, 10, replays, pause_ms);
  std::printf("median %.2f us\n", us);
}

}  // namespace
}  // namespace check

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "check") {
    const int cases = argc > 2 ? std::atoi(argv[2]) : 300;
    const std::string only = argc > 3 ? argv[3] : "";
    auto chosen = [&](const char* kernel) { return only.empty() || only == kernel; };
    if (chosen("attention")) check::check_attention(cases), check::check_repeats(100);
    if (chosen("norm")) check::failures += check::check_norms();
    if (chosen("linear")) check::failures += check::check_linears(cases / 8);
    if (chosen("tail")) check::failures += check::check_tails(cases / 16);
  } else if (command == "bench") {
    check::bench_attention();
    check::bench_norms();
    check::bench_linears();
    check::bench_tails();
  } else if (command == "linear") {
    check::failures += check::check_linears(argc > 2 ? std::atoi(argv[2]) : 40);
    check::bench_linears();
  } else if (command == "tail") {
    check::failures += check::check_tails(argc > 2 ? std::atoi(argv[2]) : 40);
    check::bench_tails();
  } else if (command == "run" && argc >= 5 && argc <= 7) {
    check::run_one(std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]),
                   argc > 5 ? std::atoi(argv[5]) : 0, argc > 6 ? std::atoi(argv[6]) : 0);
  } else {
    std::fprintf(stderr,
                 "usage: %s check [cases [attention | norm | linear | tail]] | bench | "
                 "linear [cases] | tail [cases] | run B H K [replays [pause]]\n",
                 argv[0]);
    return 2;
  }
  std::printf(check::failures ? "%d failures\n" : "all good\n", check::failures);
  return check::failures ? 1 : 0;
}
