"""Pretends to be impasto: `generate` writes its PNGs, `wait` runs until it is stopped, others print what they were."""

import json
import signal
import sys
import time
from pathlib import Path

args = [arg for arg in sys.argv[1:] if arg != "--json"]
given = {}
for arg in args[1:]:
    name, _, value = arg.partition("=")
    given.setdefault(name.removeprefix("--"), []).append(value)


def stop(*_):
    print(json.dumps({"error": "interrupted"}), flush=True)
    sys.exit(130)


if args[0] == "wait":
    signal.signal(signal.SIGTERM, stop)
    print("training 3/10, loss 0.500", file=sys.stderr, flush=True)
    Path("started").touch()
    while not Path("release").exists():
        time.sleep(0.02)
elif args[0] == "fail":
    print("impasto: error: no base at /opt/models/base", file=sys.stderr)
    print(json.dumps({"error": "no base at /opt/models/base"}))
    sys.exit(2)
elif args[0] == "crash":
    sys.exit("killed")
elif args[0] == "generate" and "grid" not in given:
    from PIL import Image, PngImagePlugin  # impasto's own writer would import torch

    seed, styles = int(given["seed"][0]), [one.rpartition(":") for one in given.get("style", [])]
    for i in range(int(given["count"][0])):
        info = {"prompt": given["prompt"][0], "negative_prompt": "", "seed": seed + i, "steps": 7, "guidance": 2.5}
        info |= {"width": 64, "height": 64, "base": given["base"][0], "base_hash": "0" * 64, "version": "0"}
        info["styles"] = [{"path": path, "strength": float(weight), "hash": ""} for path, _, weight in styles]
        text, file = PngImagePlugin.PngInfo(), Path(given["out"][0]) / f"{i:04d}.png"
        text.add_text("impasto", json.dumps(info))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "teal" if styles else "grey").save(file.with_suffix(".tmp"), "PNG", pnginfo=text)
        file.with_suffix(".tmp").rename(file)
print(json.dumps({"args": args}))
