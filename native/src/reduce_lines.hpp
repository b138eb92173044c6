// Arithmetic on cache lines of items, in vectors of WAGMA_VECTOR_BYTES; included by each reduce_*.cpp behind its target options.
// The vectors are the compiler's own: + and / on them are the IEEE operations on each element, on any processor.
//
// Everything is in an unnamed namespace and nothing here calls a function of the standard library: a function shared between
// the files could be compiled with AVX2 in one and then be called, linked, from the other on a processor without.

namespace wagma {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define WAGMA_SANITIZED
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define WAGMA_SANITIZED
#endif
#endif

#define WAGMA_INLINE inline __attribute__((always_inline))

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kVectorBytes = WAGMA_VECTOR_BYTES;

using Floats = float __attribute__((vector_size(kVectorBytes)));
using Doubles = double __attribute__((vector_size(kVectorBytes)));
using Words = unsigned __attribute__((vector_size(kVectorBytes)));
using Signed = int __attribute__((vector_size(kVectorBytes)));
using Halves = unsigned short __attribute__((vector_size(kVectorBytes / 2)));

WAGMA_INLINE Floats floats_of(Words bits) { return reinterpret_cast<Floats>(bits); }
WAGMA_INLINE Words bits_of(Floats value) { return reinterpret_cast<Words>(value); }
template <class Mask>
WAGMA_INLINE Words select(Mask mask, Words yes, Words no) {  // mask: all ones or zeros in each element
  return (reinterpret_cast<Words>(mask) & yes) | (~reinterpret_cast<Words>(mask) & no);
}

// Vectors at any address and of any content. (memcpy says the same, but the compiler may take it in pieces through the stack.)
template <class V>
struct Anywhere {
  using Type __attribute__((aligned(1), may_alias)) = V;
};

template <class V>
WAGMA_INLINE V load(const void* from) {
  return *static_cast<const typename Anywhere<V>::Type*>(from);
}

// Vectors that are stored past the caches, `to` aligned to their size. A sanitizer does not see such stores, so it gets plain ones.
template <bool streaming, class V>
WAGMA_INLINE void store(void* to, V value) {
#if defined(__x86_64__) && !defined(WAGMA_SANITIZED)
  if constexpr (streaming && sizeof(V) == 8) {
    _mm_stream_si64(static_cast<long long*>(to), load<long long>(&value));
    return;
  } else if constexpr (streaming && sizeof(V) == 16) {
    _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(value));
    return;
#if defined(WAGMA_AVX2)
  } else if constexpr (streaming && sizeof(V) == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
    return;
#endif
  }
#endif
  *static_cast<typename Anywhere<V>::Type*>(to) = value;
}

// 16 bits to 32 and back. (The compilers' own conversion takes twice the instructions with AVX2.)
#if defined(WAGMA_AVX2)
WAGMA_INLINE Words widened(const void* from) { return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(load<__m128i>(from))); }
WAGMA_INLINE Halves narrowed(Words words) {
  const auto packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(words), reinterpret_cast<__m256i>(words));
  return reinterpret_cast<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#else
WAGMA_INLINE Words widened(const void* from) { return __builtin_convertvector(load<Halves>(from), Words); }
WAGMA_INLINE Halves narrowed(Words words) { return __builtin_convertvector(words, Halves); }
#endif

// One DType: items become vectors of sums when read, vectors of sums are rounded once to vectors of items.
struct Float32 {
  using Item = float;
  using Sum = float;
  using Vector = Floats;
  static WAGMA_INLINE Floats read(const Item* from) { return load<Floats>(from); }
  static WAGMA_INLINE Floats rounded(Floats value) { return value; }
};

struct Float64 {
  using Item = double;
  using Sum = double;
  using Vector = Doubles;
  static WAGMA_INLINE Doubles read(const Item* from) { return load<Doubles>(from); }
  static WAGMA_INLINE Doubles rounded(Doubles value) { return value; }
};

// The upper half of a float32. Rounded to nearest, ties to even; a NaN becomes the quiet one of its sign, as in ml_dtypes:
// rounded like a number it could turn into an infinity.
struct Bfloat16 {
  using Item = unsigned short;
  using Sum = float;
  using Vector = Floats;
  static WAGMA_INLINE Floats read(const Item* from) {
    return floats_of(widened(from) << 16);
  }
  static WAGMA_INLINE Halves rounded(Floats value) {
    const Words bits = bits_of(value);
    const Words nearest = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
    const Words nan = ((bits >> 16) & 0x8000u) | 0x7fc0u;
    return narrowed(select(value != value, nan, nearest));
  }
};

#if defined(WAGMA_AVX2)

struct Float16 {
  using Item = unsigned short;
  using Sum = float;
  using Vector = Floats;
  static WAGMA_INLINE Floats read(const Item* from) { return _mm256_cvtph_ps(load<__m128i>(from)); }
  static WAGMA_INLINE __m128i rounded(Floats value) { return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT); }
};

#else

// What the F16C instructions do, in integers: exponents are moved by the difference of the biases; a denormal is rounded by an
// addition in float32 whose last bit is float16's last denormal bit; NaNs become quiet and keep their upper bits.
struct Float16 {
  using Item = unsigned short;
  using Sum = float;
  using Vector = Floats;
  static WAGMA_INLINE Floats read(const Item* from) {
    const Words half = widened(from);
    const Words shifted = (half & 0x7fffu) << 13;
    const Words exponent = shifted & 0x0f800000u;
    const Words normal = shifted + (112u << 23);
    const Words special = (shifted + (224u << 23)) | ((Words)((shifted & 0x007fffffu) != 0u) & 0x00400000u);
    const Words smallest = (Words{} + 1u) << 23;
    const Words small = bits_of(floats_of(shifted + (113u << 23)) - floats_of(smallest * 113u));
    const Words magnitude = select(exponent == 0x0f800000u, special, select(exponent == 0u, small, normal));
    return floats_of(magnitude | ((half & 0x8000u) << 16));
  }
  static WAGMA_INLINE Halves rounded(Floats value) {
    const Words bits = bits_of(value);
    const Words magnitude = bits & 0x7fffffffu;
    // Beyond 65536 all is infinity; what rounds up to it from below gets there by the carry into the exponent.
    const Words normal = (magnitude - (112u << 23) + (((magnitude >> 13) & 1u) + 0xfffu)) >> 13;
    const Words magic = Words{} + (126u << 23);  // 0.5: one unit in its last place is 2^-24
    const Words small = bits_of(floats_of(magnitude) + floats_of(magic)) - magic;
    const Words nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    const Words infinite = Words{} + 0x7c00u;
    Words half = select(magnitude < (113u << 23), small, normal);
    half = select(magnitude >= (143u << 23), infinite, half);
    half = select(magnitude > (255u << 23), nan, half);
    return narrowed(half | ((bits >> 16) & 0x8000u));
  }
};

#endif

// The sums of one cache line of items.
template <class T>
struct Line {
  static constexpr std::size_t kItems = kLineBytes / sizeof(typename T::Item);
  static constexpr std::size_t kLanes = kVectorBytes / sizeof(typename T::Sum);
  static constexpr std::size_t kVectors = kItems / kLanes;
  typename T::Vector vectors[kVectors];
};

}  // namespace
}  // namespace wagma
