from wagma._native import Device

why_not: str | None
architectures: tuple[str, ...]
why_no_device: str

def devices() -> int: ...
def device(index: int) -> Device: ...
