"""Models on accelerators: which device is whose, how the ranks connect, and tensors as the kernel takes them (docs/devices.md)."""
