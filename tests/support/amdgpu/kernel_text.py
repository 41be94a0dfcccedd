"""A whole kernel's text around hand-written instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_SIZES = {"pointer": 8, "int": 4, "float": 4, "long": 8}


def kernel_text(
    body: str,
    arguments: Sequence[str] = (),
    *,
    arch: str = "gfx942",
    num_accumulators: int = 64,
    directives: Sequence[str] = (),
) -> str:
    """arguments: "pointer", "long", "int" or "float" each. s[0:1] holds the address of their
    segment, s2, s3 and s4 the workgroup, v0 the thread."""
    slots = list(_slots(arguments))
    size = -(-max((offset + size for offset, size, _ in slots), default=0) // 8) * 8
    lines = [
        f'\t.amdgcn_target "amdgcn-amd-amdhsa--{arch}"',
        "\t.text",
        "kernel:",
        body.strip("\n"),
        ".Lfunc_end0:",
        "\t.amdhsa_kernel kernel",
        f"\t\t.amdhsa_kernarg_size {size}",
        "\t\t.amdhsa_user_sgpr_count 2",
        "\t\t.amdhsa_user_sgpr_kernarg_segment_ptr 1",
        *(f"\t\t.amdhsa_system_sgpr_workgroup_id_{axis} 1" for axis in "xyz"),
        f"\t\t.amdhsa_next_free_vgpr {256 + num_accumulators}",
        "\t\t.amdhsa_accum_offset 256",
        *(f"\t\t.amdhsa_{directive}" for directive in directives),
        "\t.end_amdhsa_kernel",
        "\t.amdgpu_metadata",
        "amdhsa.kernels:",
        "  - .args:",
        *_argument_lines(slots),
        "    .name:           kernel",
        "\t.end_amdgpu_metadata",
    ]
    return "\n".join(lines) + "\n"


def _slots(arguments: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Offset, size and kind, each aligned to its size."""
    offset = 0
    for name in arguments:
        size = _SIZES[name]
        offset = -(-offset // size) * size
        yield offset, size, "global_buffer" if name == "pointer" else "by_value"
        offset += size


def _argument_lines(slots: Sequence[tuple[int, int, str]]) -> Iterator[str]:
    for offset, size, kind in slots:
        yield f"      - .offset:         {offset}"
        yield f"        .size:           {size}"
        yield f"        .value_kind:     {kind}"
