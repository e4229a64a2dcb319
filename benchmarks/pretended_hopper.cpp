// What libtorch_cuda asks of CUDA while it traces, answered without a driver: one device of compute capability 9.0.
//
// Loaded before torch, under the name of the driver's library (pretended_hopper.py). Nothing can be computed on it.
#include <cstddef>
#include <cstdint>

extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 0;
  return 0;
}

namespace c10::cuda {
struct CUDAStream {  // laid out as torch's
  int8_t type, index;
  int64_t id;
};
int8_t device_count() noexcept { return 1; }
int8_t device_count_ensure_non_zero() { return 1; }
int8_t current_device() { return 0; }
void set_device(int8_t, bool) {}
int GetDeviceCount(int* n) { *n = 1; return 0; }
int GetDevice(int8_t* device) { *device = 0; return 0; }
int SetDevice(int8_t, bool) { return 0; }
int MaybeSetDevice(int8_t) { return 0; }
int8_t ExchangeDevice(int8_t) { return 0; }
int8_t MaybeExchangeDevice(int8_t) { return 0; }
void SetTargetDevice() {}
bool hasPrimaryContext(int8_t) { return false; }
CUDAStream getCurrentCUDAStream(int8_t) { return {1, 0, 0}; }
CUDAStream getDefaultCUDAStream(int8_t) { return {1, 0, 0}; }
CUDAStream getStreamFromPool(bool, int8_t) { return {1, 0, 0}; }
CUDAStream getStreamFromPool(int, int8_t) { return {1, 0, 0}; }
void setCurrentCUDAStream(CUDAStream) {}
}  // namespace c10::cuda

struct cudaDeviceProp {  // the beginning of CUDA 13's
  char name[256], uuid[16], luid[8];
  unsigned node_mask;
  size_t total_memory, shared_memory;
  int registers, warp;
  size_t pitch;
  int threads, block[3], grid[3];
  size_t constant_memory;
  int major, minor;
  size_t alignment, pitch_alignment;
  int multiprocessors;
  char rest[4096];
};

namespace at::cuda {
cudaDeviceProp* getDeviceProperties(int8_t) {
  static cudaDeviceProp found = [] {
    cudaDeviceProp h200{};
    h200.major = 9;
    h200.multiprocessors = 132;
    h200.warp = 32;
    h200.threads = 1024;
    h200.total_memory = 141000000000;
    return h200;
  }();
  return &found;
}
cudaDeviceProp* getCurrentDeviceProperties() { return getDeviceProperties(0); }
}  // namespace at::cuda
