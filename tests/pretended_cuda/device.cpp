// A CUDA device that is none: memory of the host under the name cuda:0, on which the operations of the CPU are done.
//
// Loaded into a torch without CUDA (sitecustomize.py), it makes tensors of the device plain tensors with that device. What
// a real one would refuse is refused (operations between devices, numpy, a generator of the host, more memory than there
// is); what would make the host wait is counted. What it cannot show: order on streams, speed, kernels of their own.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <unordered_set>

namespace {

const c10::Device kPretended(c10::DeviceType::CUDA, 0);

// ---- what the device says of itself

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kPretended; }
  c10::Device getDevice() const override { return kPretended; }
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, kPretended); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};

std::mutex pinned_guard;
std::set<std::pair<const char*, const char*>> pinned;  // [begin, end)

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> held(pinned_guard);
  auto at = static_cast<const char*>(data);
  for (const auto& [begin, end] : pinned)
    if (begin <= at && at < end) return true;
  return false;
}

// Bytes of the device: the most there are, those in use, and the most that were
std::atomic<int64_t> total{8LL << 30}, in_use{0}, peak{0};
constexpr size_t kHead = 64;  // holds the size of what follows

void take(int64_t n) {
  in_use += n;
  if (in_use > total) {
    in_use -= n;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", n, " bytes.");
  }
  if (in_use > peak) peak = in_use.load();
}

void* begin_memory(size_t n) {
  take(n);
  void* data = nullptr;
  TORCH_CHECK(posix_memalign(&data, 64, n + kHead + 64) == 0, "no memory");
  *static_cast<size_t*>(data) = n;
  return static_cast<char*>(data) + kHead;
}

void free_memory(void* data) {
  auto begin = static_cast<char*>(data) - kHead;
  in_use -= *reinterpret_cast<size_t*>(begin);
  std::free(begin);
}

void free_pinned(void* data) {
  std::lock_guard<std::mutex> held(pinned_guard);
  for (auto one = pinned.begin(); one != pinned.end(); ++one)
    if (one->first == data) {
      pinned.erase(one);
      break;
    }
  std::free(data);
}

// Memory of the host, which says that it is the device's, or page-locked. Poisoned: what is read before it is written is seen.
template <bool on_device>
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = nullptr;
    if (on_device) {
      data = begin_memory(n);
    } else {
      TORCH_CHECK(posix_memalign(&data, 64, n + 64) == 0, "no memory");
      std::lock_guard<std::mutex> held(pinned_guard);
      pinned.insert({static_cast<char*>(data), static_cast<char*>(data) + n + 1});
    }
    std::memset(data, 0xCB, n);
    return {data, data, raw_deleter(), on_device ? kPretended : c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return on_device ? &free_memory : &free_pinned; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
Memory<true> device_memory;
Memory<false> pinned_memory;

// Draws what a generator of the host draws.
struct Generator final : c10::GeneratorImpl {
  at::Generator host;
  explicit Generator(at::Generator host)
      : c10::GeneratorImpl(kPretended, c10::DispatchKeySet(c10::DispatchKey::CUDA)), host(std::move(host)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Generator* clone_impl() const override { return new Generator(host.clone()); }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  c10::Device getDeviceFromPtr(void*) const override { return kPretended; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// ---- what makes the host wait for a real device

std::atomic<int64_t> waits{0};
std::atomic<int64_t> mode{0};  // 2: an error, as in torch.cuda.set_sync_debug_mode

void waits_for_device(const std::string& what) {
  ++waits;
  TORCH_CHECK(mode != 2, "called a synchronizing CUDA operation: ", what);
}

const std::unordered_set<std::string> kWaiting = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::bincount", "aten::argwhere"};
// Take tensors of the host beside the device's.
const std::unordered_set<std::string> kMixing = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};

// ---- a tensor of the device as one of the host, and back

// Whose memory a renamed storage is. counted : bytes that an operation took, which are taken to be the device's
struct Kept {
  c10::Storage storage;
  int64_t counted;
};

void drop(void* one) {
  in_use -= static_cast<Kept*>(one)->counted;
  delete static_cast<Kept*>(one);
}

// The same memory under another device's name; it lives as long as either.
c10::Storage renamed(const c10::Storage& storage, c10::Device device, c10::Allocator* allocator) {
  const bool is_new = device.is_cuda() && storage.data_ptr().get_deleter() != &drop;
  const int64_t counted = is_new ? storage.nbytes() : 0;
  take(counted);
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
      c10::DataPtr(storage.mutable_data(), new Kept{storage, counted}, &drop, device), allocator, /*resizable=*/true));
}

at::Tensor renamed(const at::Tensor& t, c10::Device device, c10::Allocator* allocator) {
  auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      renamed(t.storage(), device, allocator), c10::DispatchKeySet(key), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sym_sizes(), t.sym_strides(), t.sym_storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

at::Tensor on_host(const at::Tensor& t) { return renamed(t, c10::Device(c10::kCPU), c10::GetAllocator(c10::kCPU)); }
at::Tensor on_device(const at::Tensor& t) { return renamed(t, kPretended, &device_memory); }

// ---- every operation: that of the host, on the same memory

struct Mapped {
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // (device, host)
  const std::string& op;

  at::Tensor operator()(const at::Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_cuda()) {
      TORCH_CHECK(
          t.dim() == 0 || kMixing.count(op), "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
          op, ", sizes ", t.sizes(), ")");
      return t;
    }
    pairs.emplace_back(t, on_host(t));
    return pairs.back().second;
  }
  // An operation that returns what it was given returns the tensor of the device.
  at::Tensor back(const at::Tensor& host) {
    if (!host.defined()) return host;
    for (auto& [device, given] : pairs)
      if (given.is_same(host)) return device;
    return on_device(host);
  }
  // An `out` that was resized
  void settle() {
    for (auto& [device, host] : pairs)
      if (device.sizes() != host.sizes()) {
        device.unsafeGetTensorImpl()->set_storage_keep_dtype(renamed(host.contiguous().storage(), kPretended, &device_memory));
        device.unsafeGetTensorImpl()->set_sizes_contiguous(host.sizes());
      }
  }
};

void every_operation(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = schema.operator_name().name;
  const auto n_arguments = schema.arguments().size();
  const auto first = stack->size() - n_arguments;
  Mapped map{{}, name};
  bool boolean_index = false;
  for (size_t i = 0; i < n_arguments; ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = map(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> made;
      for (const at::Tensor& one : value.toTensorVector()) made.push_back(map(one));
      value = made;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> made;
      for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector()) {
        if (one && one->defined()) boolean_index |= one->scalar_type() == at::kBool || one->scalar_type() == at::kByte;
        made.push_back(one ? std::optional<at::Tensor>(map(*one)) : std::nullopt);
      }
      value = made;
    } else if (value.isGenerator()) {
      auto given = value.toGenerator();
      TORCH_CHECK(given.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
      value = static_cast<Generator*>(given.unsafeGetGeneratorImpl())->host;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    }
  }
  if (kWaiting.count(name) || boolean_index) waits_for_device(name);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  map.settle();
  const auto n_results = schema.returns().size();
  for (size_t i = stack->size() - n_results; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = map.back(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> made;
      for (const at::Tensor& one : value.toTensorVector()) made.push_back(map.back(one));
      value = made;
    }
  }
}

// ---- what is no arithmetic: memory, copies, views

at::Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
      c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &device_memory,
      c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

bool waits_in_copy(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.is_cuda() && from.is_cuda()) return false;
  return !(non_blocking && is_pinned((to.is_cuda() ? from : to).const_data_ptr()));
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() && waits_in_copy(to, from, non_blocking)) waits_for_device("copy");
  auto host = to.is_cuda() ? on_host(to) : to;
  host.copy_(from.is_cuda() ? on_host(from) : from);
  return to;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  auto result = to;
  return copy_(result, from, non_blocking);
}

const at::Tensor& resize_(const at::Tensor& t, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto wanted = C10_AS_INTARRAYREF_SLOW(size);
  int64_t n = 1;
  for (auto one : wanted) n *= one;
  if (static_cast<size_t>((n + t.storage_offset()) * t.itemsize()) > t.storage().nbytes()) {
    auto made = at::detail::empty_generic(
        {n + t.storage_offset()}, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), t.scalar_type(),
        std::nullopt);
    std::memcpy(made.storage().mutable_data(), t.storage().data(), t.storage().nbytes());
    t.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
  }
  t.unsafeGetTensorImpl()->set_sizes_contiguous(wanted);
  if (format) t.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return t;
}

at::Tensor& set_storage(
    at::Tensor& t, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  if (stride.empty() && !size.empty()) t.unsafeGetTensorImpl()->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  else t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return t;
}

void record_stream(at::Tensor&, c10::Stream) {}

int64_t count_waits() { return waits; }
void set_mode(int64_t wanted) { mode = wanted; }

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}
namespace at {
using CUDAHooks = Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&every_operation>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("resize_", resize_);
  m.impl("record_stream", record_stream);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", [](at::Tensor& t, at::Storage storage) -> at::Tensor& {
    int64_t n = static_cast<int64_t>(storage.nbytes() / t.itemsize());
    return set_storage(t, std::move(storage), 0, {n}, {1});
  });
  m.impl("set_.source_Tensor", [](at::Tensor& t, const at::Tensor& from) -> at::Tensor& {
    return set_storage(t, from.storage(), from.sym_storage_offset(), from.sym_sizes(), from.sym_strides());
  });
  // else torch would look for cuDNN, or make it of other operations
  auto boxed = [] { return torch::CppFunction::makeFromBoxedFunction<&every_operation>(); };
  m.impl("convolution", boxed());
  m.impl("convolution_backward", boxed());
  m.impl("native_group_norm", boxed());
}

TORCH_LIBRARY(pretended, m) {
  m.def("waits() -> int", count_waits);
  m.def("set_mode(int mode) -> ()", set_mode);
  m.def("memory() -> int[]", [] { return std::vector<int64_t>{in_use, peak, total}; });
  m.def("set_memory(int bytes) -> ()", [](int64_t n) { total = n; });
  m.def("reset_peak() -> ()", [] { peak = in_use.load(); });
}

// c10::SetAllocator has to be called once, when this is loaded.
static const bool allocator_is_set = [] {
  c10::SetAllocator(c10::DeviceType::CUDA, &device_memory);
  return true;
}();
