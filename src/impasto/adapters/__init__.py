"""Adapters: which weights are trained. ADAPTERS and TEXT are the tables in which a name is looked up.

A row of ADAPTERS names an `adapters.base.Adapter`. TEXT is what is trained of the text encoders beside it: a row's
builder is `build(settings, optim, adapter, seed) -> adapters.text_encoder.TextConditioning`.
"""

from impasto.registry import Entry

ADAPTERS: dict[str, Entry] = {
    "lora": Entry(
        "impasto.adapters.config:LoRA",
        "impasto.adapters.lora:ADAPTER",
        "low-rank updates B A of linear and convolution layers, the paper's choice",
    ),
    "styleinject": Entry(
        "impasto.adapters.config:StyleInject",
        "impasto.adapters.styleinject:ADAPTER",
        "several low-rank updates mixed by a router, and AdaIN; not mergeable",
    ),
    "kv-bottleneck": Entry(
        "impasto.adapters.config:KVBottleneck",
        "impasto.adapters.kv_bottleneck:ADAPTER",
        "bottlenecks behind keys and values of cross-attention (FineStyle); not mergeable",
    ),
    "styledrop": Entry(
        "impasto.adapters.config:StyleDrop",
        "impasto.adapters.styledrop:ADAPTER",
        "bottlenecks behind cross-attention and MLP (StyleDrop); not mergeable",
    ),
    "full": Entry(
        "impasto.adapters.config:FullFineTuning",
        "impasto.adapters.full:ADAPTER",
        "all weights of the denoiser; the style folder is a base by itself",
    ),
    "full-rank": Entry(
        "impasto.adapters.config:FullRankLoRA",
        "impasto.adapters.full_rank:ADAPTER",
        "all weights of some layers, saved as a LoRA (Custom Diffusion's keys and values)",
    ),
}
TEXT: dict[str, Entry] = {
    "frozen": Entry(
        "impasto.adapters.config:FrozenText",
        "impasto.adapters.text_encoder:TextConditioning",
        "captions are encoded once",
    ),
    "lora": Entry("impasto.adapters.config:TextLoRA", "impasto.adapters.text_encoder:ClipLoRA", "a LoRA of CLIP"),
    "token": Entry(
        "impasto.adapters.config:TextToken",
        "impasto.adapters.text_encoder:LearnedTokens",
        "new tokens of CLIP for style words (textual inversion)",
    ),
}
