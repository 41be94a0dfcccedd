"""The child of the cuda and rocm probe: imports torch, asks it for its cards, prints them.

Run as `python -m hal.devices.torch_probe`; a driver that crashes or hangs takes only this down.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Protocol

from hal.devices import cuda, rocm
from hal.devices.card import CardProperties, card_identity, card_slot
from hal.devices.child import print_answer
from hal.devices.links import links
from hal.report import DeviceReport


class ProbeApi(Protocol):
    """The part of the `torch.cuda` module that tells about cards; tests pass a recording."""

    def init(self) -> None: ...
    def device_count(self) -> int: ...
    def get_device_properties(self, device: int) -> CardProperties: ...
    def get_arch_list(self) -> list[str]: ...
    def mem_get_info(self, device: int) -> tuple[int, int]: ...


def cards(api: ProbeApi, spec_name: str, runtime: str) -> tuple[DeviceReport, ...]:
    """Every card `api` lists, each usable or with its reason; one reason if it lists none.

    spec_name: "cuda" or "rocm", whichever this torch was built for
    """
    try:
        api.init()
        count = api.device_count()
    except (RuntimeError, AssertionError) as error:
        return (DeviceReport(spec=spec_name, reason=first_line(error)),)
    if count == 0:
        reason = "the driver lists no card; CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES may hide it"
        return (DeviceReport(spec=spec_name, reason=reason),)
    return tuple(_card(api, spec_name, runtime, index) for index in range(count))


def _card(api: ProbeApi, spec_name: str, runtime: str, index: int) -> DeviceReport:
    vendor: ModuleType = rocm if spec_name == "rocm" else cuda
    spec = f"{spec_name}:{index}"
    try:
        properties = api.get_device_properties(index)
        free_bytes, _ = api.mem_get_info(index)
    except RuntimeError as error:
        return DeviceReport(spec=spec, reason=first_line(error))
    caps = vendor.capabilities(properties, free_bytes, runtime)
    caps = replace(caps, links=links(card_slot(properties)))
    card = card_identity(properties)
    if vendor.is_built_for(properties, api.get_arch_list()):
        return DeviceReport(spec=spec, capabilities=caps, card=card)
    built = " ".join(api.get_arch_list())
    return DeviceReport(
        spec=spec,
        capabilities=caps,
        card=card,
        reason=f"the installed torch has no code for {caps.arch}, only for {built}",
        remedy=f"install a torch build that lists {caps.arch}",
    )


def first_line(error: BaseException) -> str:
    """What a driver says first; the rest is advice about its debug settings."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def main() -> None:
    import torch

    if torch.version.hip:
        print_answer(cards(torch.cuda, "rocm", torch.version.hip))
    else:
        print_answer(cards(torch.cuda, "cuda", torch.version.cuda or ""))


if __name__ == "__main__":
    main()
