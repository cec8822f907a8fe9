// One code path of the library: compiled once for each instruction set, with SA2_PATH naming it. Everything inside has
// internal linkage, so that no path's code can stand in for another's.
#include "kernels.h"

#include "dcnv3.h"
#include "functions.h"
#include "gated_conv.h"
#include "rank_attention.h"
#include "selective_scan.h"

namespace {

void functions(const float* x, int64_t count, float* exponential, float* of_softplus, float* of_sigmoid,
               float* of_tanh) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const Vec v = load(x + i, count - i);
        store(exponential + i, exp_nonpositive(v < 0.0f ? v : Vec{}), count - i);
        store(of_softplus + i, softplus(v), count - i);
        store(of_sigmoid + i, sigmoid(v), count - i);
        store(of_tanh + i, tanh(v), count - i);
    }
}

}  // namespace

namespace sa2 {

extern const Kernels SA2_PATH;
const Kernels SA2_PATH = {dcnv3_forward, dcnv3_backward, attention_forward, attention_backward,
                          scan_forward,  scan_backward,  gated_conv,        functions};

}  // namespace sa2
