"""Descriptions of x86 chips.

The generic targets ask for no more than their instruction needs, so their libraries run on every chip that
has it; the named ones add what one microarchitecture has, and LLVM's scheduling model of it.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.targets.base import Target

KIB = 1024

_V3 = (
    "pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm", "abm", "bmi1", "bmi2", "movbe", "avx",
    "f16c", "fma", "avx2",
)  # fmt: skip
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_ICELAKE_VECTORS = ("avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq")
_CRYPTO = ("aes", "pclmulqdq")
_WIDE_CRYPTO = (*_CRYPTO, "vaes", "vpclmulqdq")
_ICELAKE = (*_V3, "adx", *_AVX512, "avx512_vnni", *_ICELAKE_VECTORS, *_WIDE_CRYPTO, "gfni", "sha_ni")

# LLVM avoids 512-bit registers on Intel's chips, where they lowered the clock in the generation of Skylake.
# The kernels use them anyway, so the code between may too.
_FULL_WIDTH = ("-prefer-256-bit",)

AVX2 = Target(
    name="x86-avx2",
    family="x86",
    mcpu="x86-64-v3",
    llvm_features=(),
    required_features=_V3,
    instruction="vpmaddwd",
    vector_bits=256,
    vector_registers=16,
    # Two 256-bit vpmaddwd a cycle of 16 products each, on Skylake and Zen 3. Haswell and Zen 2 do one.
    macs_per_cycle=32,
    l1_bytes=32 * KIB,
    l2_bytes=256 * KIB,
    microarchitecture="x86_64_v3",
    half_vector_cost=2.0,
    float_macs_per_cycle=16,  # two 256-bit fused multiply-adds, on all chips with AVX2 but Zen's first
)

AVX_VNNI = replace(
    AVX2,
    name="x86-avx-vnni",
    llvm_features=("+avxvnni",),
    required_features=(*_V3, "avx_vnni"),
    instruction="vpdpbusd",
    # Two 256-bit vpdpbusd a cycle of 32 products each, on the performance cores of Alder Lake.
    macs_per_cycle=64,
    l1_bytes=48 * KIB,
    l2_bytes=1280 * KIB,
)

AVX512 = replace(
    AVX2,
    name="x86-avx512",
    mcpu="x86-64-v4",
    llvm_features=_FULL_WIDTH,
    required_features=(*_V3, *_AVX512),
    vector_bits=512,
    vector_registers=32,
    # Two 512-bit vpmaddwd a cycle (ports 0 and 5) of 32 products each, on Skylake servers.
    macs_per_cycle=64,
    l2_bytes=1024 * KIB,
    microarchitecture="x86_64_v4",
    float_macs_per_cycle=32,
)

AVX512_VNNI = replace(
    AVX512,
    name="x86-avx512-vnni",
    llvm_features=("+avx512vnni", *_FULL_WIDTH),
    required_features=(*_V3, *_AVX512, "avx512_vnni"),
    instruction="vpdpbusd",
    # Two 512-bit vpdpbusd a cycle (ports 0 and 5) of 64 products each, on Intel's servers since Cascade Lake.
    macs_per_cycle=128,
)

HASWELL = replace(
    AVX2,
    name="x86-haswell",
    mcpu="haswell",
    required_features=(*_V3, "pclmulqdq"),
    macs_per_cycle=16,  # vpmaddwd runs on port 0 alone
    microarchitecture="haswell",
)

SKYLAKE = replace(
    AVX2,
    name="x86-skylake",
    mcpu="skylake",
    required_features=(*_V3, "adx", *_CRYPTO),
    microarchitecture="skylake",
)

ALDERLAKE = replace(
    AVX_VNNI,
    name="x86-alderlake",
    mcpu="alderlake",
    llvm_features=(),
    required_features=(*_V3, "adx", "avx_vnni", *_WIDE_CRYPTO, "gfni", "sha_ni"),
    microarchitecture="alderlake",
)

SKYLAKE_AVX512 = replace(
    AVX512,
    name="x86-skylake-avx512",
    mcpu="skylake-avx512",
    required_features=(*_V3, "adx", *_AVX512, *_CRYPTO),
    microarchitecture="skylake_avx512",
)

CASCADELAKE = replace(
    AVX512_VNNI,
    name="x86-cascadelake",
    mcpu="cascadelake",
    llvm_features=_FULL_WIDTH,
    required_features=(*_V3, "adx", *_AVX512, "avx512_vnni", *_CRYPTO),
    microarchitecture="cascadelake",
)

ICELAKE_SERVER = replace(
    CASCADELAKE,
    name="x86-icelake-server",
    mcpu="icelake-server",
    required_features=_ICELAKE,
    l1_bytes=48 * KIB,
    l2_bytes=1280 * KIB,
    microarchitecture="icelake",
    has_vbmi=True,
)

ICELAKE_CLIENT = replace(
    ICELAKE_SERVER,
    name="x86-icelake-client",
    mcpu="icelake-client",
    # Port 5 of the client chips has no 512-bit multiplier: one vpdpbusd a cycle, or two of 256 bits.
    macs_per_cycle=64,
    half_vector_cost=1.0,
    l2_bytes=512 * KIB,
    float_macs_per_cycle=16,
)

SAPPHIRERAPIDS = replace(
    ICELAKE_SERVER,
    name="x86-sapphirerapids",
    mcpu="sapphirerapids",
    required_features=(*_ICELAKE, "avx_vnni", "avx512_bf16", "avx512_fp16"),
    bf16_macs_per_cycle=32,  # one vdpbf16ps a cycle of 32 products
    l2_bytes=2048 * KIB,
    microarchitecture="sapphirerapids",
)

ZNVER2 = replace(
    AVX2,
    name="x86-znver2",
    mcpu="znver2",
    required_features=(*_V3, "sse4a", "adx", *_CRYPTO, "sha_ni"),
    macs_per_cycle=16,  # one of the four vector pipes multiplies integers
    l2_bytes=512 * KIB,
    microarchitecture="zen2",
)

ZNVER3 = replace(
    AVX2,
    name="x86-znver3",
    mcpu="znver3",
    required_features=(*_V3, "sse4a", "adx", *_WIDE_CRYPTO, "sha_ni"),
    l2_bytes=512 * KIB,
    microarchitecture="zen3",
)

ZNVER4 = replace(
    AVX512_VNNI,
    name="x86-znver4",
    mcpu="znver4",
    llvm_features=(),
    required_features=(*_ICELAKE, "sse4a", "avx512_bf16"),
    # The two multipliers are 256 bits wide: a 512-bit vpdpbusd occupies both for a cycle, and so do the float ones.
    macs_per_cycle=64,
    half_vector_cost=1.0,
    microarchitecture="zen4",
    has_vbmi=True,
    float_macs_per_cycle=16,
    bf16_macs_per_cycle=32,
)

ZNVER5 = replace(
    ZNVER4,
    name="x86-znver5",
    mcpu="znver5",
    required_features=(*ZNVER4.required_features, "avx_vnni", "avx512_vp2intersect"),
    # Two multipliers of 512 bits, on servers and desktops; mobile chips have half.
    macs_per_cycle=128,
    half_vector_cost=2.0,
    l1_bytes=48 * KIB,
    microarchitecture="zen5",
    float_macs_per_cycle=32,
    bf16_macs_per_cycle=64,
)

GENERIC = (AVX512_VNNI, AVX_VNNI, AVX512, AVX2)
"""Targets of one instruction each, fastest first."""

CHIPS = (
    HASWELL,
    SKYLAKE,
    ALDERLAKE,
    SKYLAKE_AVX512,
    CASCADELAKE,
    ICELAKE_CLIENT,
    ICELAKE_SERVER,
    SAPPHIRERAPIDS,
    ZNVER2,
    ZNVER3,
    ZNVER4,
    ZNVER5,
)
"""Targets of one microarchitecture each."""

MCPU_ALIASES = {
    "broadwell": "haswell",
    "cooperlake": "cascadelake",
    "rocketlake": "icelake-client",
    "tigerlake": "icelake-client",
    "emeraldrapids": "sapphirerapids",
    "graniterapids": "sapphirerapids",
    "raptorlake": "alderlake",
    "meteorlake": "alderlake",
}
"""LLVM's names of processors that share another one's vector units and description."""
