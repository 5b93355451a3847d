// A CUDA driver whose only device is this processor, and whose only kernels are those of ms_deform_attn.cu.
//
// A block's warps run one after the other. The 32 lanes of a warp are coroutines, which take turns at shuffles: all
// of them have to come to the same ones.

#include "gpu.h"

Index threadIdx, blockIdx, gridDim;

#include "ms_deform_attn.cu"

KERNEL(forward, float32, plain, 2, 2, 2, 8, vector)
KERNEL(backward, float32, plain, 2, 2, 2, 8, vector)
KERNEL(forward, bfloat16, fused, 1, 1, 3, 3, scalar)
KERNEL(backward, bfloat16, fused, 1, 1, 3, 3, scalar)
KERNEL(forward, float16, fused, 2, 0, 0, 8, vector)
KERNEL(backward, float16, fused, 2, 0, 0, 8, vector)
KERNEL(forward, float32, fused, 1, 1, 1, 37, scalar)
KERNEL(backward, float32, fused, 1, 1, 1, 37, scalar)

#include <dlfcn.h>
#include <ucontext.h>

#include <cstddef>
#include <string>
#include <vector>

enum Error { SUCCESS, INVALID_IMAGE = 200, NO_BINARY = 209, NOT_FOUND = 500, BAD_ADDRESS = 700, FAILED = 719 };

using Kernel = void (*)(Problem);

namespace {

int error;
Problem problem;
size_t value_size;

// ---- Addresses. ----

bool lies_in(const void* from, size_t bytes, const void* base, long long count, size_t size) {
    const auto start = reinterpret_cast<uintptr_t>(base), address = reinterpret_cast<uintptr_t>(from);
    return base && address >= start && address + bytes <= start + count * size;
}

// ---- A warp. ----

constexpr size_t STACK = 1 << 16;
ucontext_t scheduler, lanes[WARP];
std::vector<char> stacks(WARP * STACK);
bool is_done[WARP];
int current, shuffles[WARP], steps[WARP];
float exchanged[2][WARP];  // by turns: a slow lane reads the one while a fast lane writes the other
Kernel kernel;

void run_lane() {
    kernel(problem);
    is_done[current] = true;
}

void run_warp(unsigned first) {
    for (int lane = 0; lane < WARP; lane++) {
        getcontext(&lanes[lane]);
        lanes[lane].uc_stack.ss_sp = &stacks[lane * STACK];
        lanes[lane].uc_stack.ss_size = STACK;
        lanes[lane].uc_link = &scheduler;
        makecontext(&lanes[lane], run_lane, 0);
        is_done[lane] = false;
        shuffles[lane] = 0;
    }
    for (int done = 0; done < WARP && !error;) {
        done = 0;
        for (current = 0; current < WARP; current++) {
            threadIdx = {first + current, 0, 0};
            swapcontext(&scheduler, &lanes[current]);
            done += is_done[current];
        }
        for (int lane = 0; lane < WARP; lane++) {
            if (is_done[lane] != is_done[0] || steps[lane] != steps[0]) error = FAILED;  // they went apart
        }
    }
}

}  // namespace

float __shfl_xor_sync(unsigned mask, float number, int step) {
    const int lane = current, turn = shuffles[lane]++ % 2;
    if (mask != 0xffffffffu) error = FAILED;
    exchanged[turn][lane] = number;
    steps[lane] = step;
    swapcontext(&lanes[lane], &scheduler);
    return exchanged[turn][lane ^ step];
}

void check_load(const void* from, size_t bytes) {
    const Problem& p = problem;
    const long long rows = (long long)p.images * p.queries * p.heads, points = (long long)p.levels * p.level_points;
    const long long references = p.reference_image_stride * (p.images - 1) +
                                 (long long)p.reference_query_stride * p.queries;
    const bool known =
        lies_in(from, bytes, p.value, (long long)p.images * p.cells * p.heads * p.channels, value_size) ||
        lies_in(from, bytes, p.points, rows * points * 2, 4) || lies_in(from, bytes, p.weights, rows * points, 4) ||
        lies_in(from, bytes, p.reference, references, 4) || lies_in(from, bytes, p.grad, rows * p.channels, value_size);
    if (!known || reinterpret_cast<uintptr_t>(from) % bytes) error = BAD_ADDRESS;
}

void check_addition(const void* target, size_t bytes) {
    const long long count = (long long)problem.images * problem.cells * problem.heads * problem.channels;
    const bool known = lies_in(target, bytes, problem.grad_value, count, 4);
    if (!known || reinterpret_cast<uintptr_t>(target) % bytes) error = BAD_ADDRESS;
}

// ---- The driver's interface. ----

#define FIELD(name) {#name, offsetof(Problem, name), sizeof(Problem::name)}

struct Field {
    const char* name;
    size_t offset, size;
};

extern "C" {

int cuInit(unsigned) { return SUCCESS; }

int cuGetErrorName(int code, const char** name) {
    *name = code == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : code == BAD_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                            : code == FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : nullptr;
    return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &problem;
    return SUCCESS;
}

int contexts;  // that are current
int cuCtxPushCurrent_v2(void* context) {
    contexts++;
    return context == &problem ? SUCCESS : FAILED;
}
int cuCtxPopCurrent_v2(void**) {
    contexts--;
    return SUCCESS;
}

// Any image but one that begins with "foreign" is taken for the kernels that are linked here.
int cuModuleLoadData(void** module, const char* image) {
    if (contexts != 1) return FAILED;
    *module = dlopen(nullptr, RTLD_LAZY);
    return std::string(image, 7) == "foreign" ? NO_BINARY : SUCCESS;
}

int cuModuleGetFunction(void** function, void*, const char* name) {
    if (contexts != 1) return FAILED;
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&cuInit), &here);
    void* library = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = dlsym(library, name);
    return *function ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned,
                   void*, void** parameters, void**) {
    if (contexts != 1 || threads != THREADS || !x || !y || !z || y > 65535 || z > 65535) return FAILED;
    Dl_info found;
    dladdr(function, &found);
    value_size = std::string(found.dli_sname).find("float32") == std::string::npos ? 2 : 4;
    kernel = reinterpret_cast<Kernel>(function);
    problem = *static_cast<Problem*>(parameters[0]);
    gridDim = {x, y, z};
    error = SUCCESS;
    for (blockIdx.z = 0; blockIdx.z < z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++)
                for (unsigned first = 0; first < threads && !error; first += WARP) run_warp(first);
    return error;
}

// ---- What tests ask for besides. ----

Field fields[] = {
    FIELD(value), FIELD(points), FIELD(weights), FIELD(reference), FIELD(output), FIELD(grad), FIELD(grad_value),
    FIELD(grad_points), FIELD(grad_weights), FIELD(reference_image_stride), FIELD(reference_query_stride),
    FIELD(reference_level_stride), FIELD(images), FIELD(cells), FIELD(queries), FIELD(heads), FIELD(channels),
    FIELD(levels), FIELD(level_points), FIELD(team), FIELD(level), {"", sizeof(Problem), 0}};
int numbers[] = {THREADS, WARP, MAX_LEVELS};

unsigned short narrow_half(float number) { return float_to_half(number); }
float widen_half(unsigned short half) { return half_to_float(half); }
unsigned short narrow_bfloat16(float number) { return bfloat16::narrow(number); }
}
