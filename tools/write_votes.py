"""A vote set of InstaStyle and each other method of claim N9, and prompts for other methods.

    python tools/write_votes.py --cells smoke                # votes/, of the cells that were run here
    python tools/write_votes.py --prompts                    # others/prompts.jsonl and the references

Both go into the campaign's folder (--out docs/results/instastyle), see `impasto.reproduce.instastyle_others`. `impasto
votes summary docs/results/instastyle/votes` counts.
"""

import argparse
import json
from pathlib import Path

from impasto.reproduce.campaign import make_campaign
from impasto.reproduce.instastyle import BASE, OTHERS
from impasto.reproduce.instastyle_others import other_arms, write_pairs, write_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--cells", default="smoke")
    parser.add_argument("--out", type=Path, default=Path("docs/results/instastyle"))
    parser.add_argument("--prompts", action="store_true")
    args = parser.parse_args()
    campaign = make_campaign("instastyle", args.base, args.out)
    if args.prompts:
        write_prompts(args.out, campaign.world.units(args.cells, "single"))
        return
    others = [*OTHERS, *other_arms(args.out)]
    print(json.dumps(write_pairs(campaign, args.cells, "single: score", others), indent=1))


if __name__ == "__main__":
    main()
