"""The optimizer that PyTorch users import: `distribute` checks and agrees, `build` puts the parts together, `optimizer` is the result.

Beside it: what is averaged apart from the model (`extras`, `mean`), one model to evaluate (`consolidated`), parameters in the engine's
buffers (`resident`), and what has to hold of the model before and while it trains (`alike`, `intact`).
"""
