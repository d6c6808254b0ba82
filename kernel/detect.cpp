// Whether this process may use the kernel. Compiled without the kernel's instruction sets, so that it runs on
// every x86-64 processor: nothing else in the library does.
//
// Three things must hold. The processor has the instructions (CPUID). The operating system saves the registers
// they use (XGETBV). And on Linux a process asks for the tile registers before it uses them, because they make
// every saved context 8 KB larger (arch_prctl, Linux 5.16): an older system or a sandbox may refuse.
#include "embatch_amx.h"

#if !defined(EMBATCH_PORTABLE) || defined(EMBATCH_VECTORS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

#if defined(EMBATCH_VECTORS)
constexpr bool kTiles = false;  // of a build for tests (simd.h)
#else
constexpr bool kTiles = true;
#endif
constexpr unsigned long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr unsigned long kTileData = 18;               // the feature's number in XCR0

constexpr bool bit(unsigned word, int place) { return (word >> place) & 1; }

bool processor_able() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 12) || !bit(c, 27)) return false;  // FMA, OSXSAVE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
  const bool amx = bit(d, 22) && bit(d, 24);                                // AMX-BF16, AMX-TILE
  if (!avx512 || (kTiles && !amx) || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  return bit(a, 5);  // AVX512-BF16
}

bool registers_kept() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned wanted = 0xe6 | (kTiles ? 0x60000 : 0);  // SSE, AVX, three states of AVX-512, two of AMX
  return (low & wanted) == wanted;
}

}  // namespace

int embatch_amx_supported(void) {
  if (!processor_able()) return EMBATCH_NO_PROCESSOR;
  if (!registers_kept()) return EMBATCH_NO_SYSTEM;
  if (!kTiles) return EMBATCH_SUPPORTED;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? EMBATCH_SUPPORTED : EMBATCH_NO_PERMISSION;
}

#else  // the portable build runs on everything

int embatch_amx_supported(void) { return EMBATCH_SUPPORTED; }

#endif

int embatch_amx_interface(void) { return EMBATCH_AMX_INTERFACE; }
