"""Something-Something v2 as a folder of links, train/CLASS/ and val/CLASS/, that mmssl reads.

    python datasets/something_something_v2.py --source FOLDER --out data/ssv2

Card
    Content  220,847 clips of 174 things that people do with objects ("Moving something up"), 2 to 6 s, 240 pixels high,
             12 frames/s, webm (VP9) (length, size and rate recalled). One has to see the motion to tell them apart.
    Source   R. Goyal et al., "The 'something something' video database for learning and evaluating visual common
             sense", ICCV 2017, arXiv:1706.04261; https://www.qualcomm.com/developer/software/something-something-v-2-dataset
             (was 20bn.com): parts of an archive of the videos, and the labels.
    Licence  Qualcomm's data licence, for research only. Do not pass it on.
    Splits   The official ones: train 168,913, validation 24,777 (verified), test 27,157 without labels. Results are
             reported on validation; the test part is not linked.
    Disk     19.4 GB of videos (recalled), which stay where they are.

FOLDER holds, at any depth, the videos NUMBER.webm and the lists labels.json, train.json and validation.json, with or
without something-something-v2- before their names.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from organise import Plan, by_stem, fail, videos

COUNTS = {"train": 168_913, "val": 24_777}
CLASSES = 174
NAMES = {"labels": "labels", "train": "train", "val": "validation"}


def read_json(source: Path, name: str) -> tuple[Path, Any]:
    names = (f"something-something-v2-{name}.json", f"{name}.json")
    path = next((path for file in names for path in sorted(source.rglob(file))), None)
    if path is None:
        fail(f"{source} holds no {names[0]}: fetch the labels of Something-Something v2 there.")
    try:
        return path, json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{path} cannot be read as JSON ({error}): fetch it again.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the videos and the lists")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and val/")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the videos that are not there")
    args = parser.parse_args(argv)
    found = by_stem(videos(args.source, "Something-Something v2"))
    path, labels = read_json(args.source, NAMES["labels"])
    if not isinstance(labels, dict) or len(labels) != CLASSES:
        fail(f"{path} has not {CLASSES} classes: it is not the list of Something-Something v2.")
    plan = Plan()
    for split, count in COUNTS.items():
        path, rows = read_json(args.source, NAMES[split])
        for row in rows:
            # The template of a class, "Moving [something] up", is its name with brackets.
            label = str(row.get("template", "")).replace("[", "").replace("]", "")
            if label not in labels:
                fail(f"Clip {row.get('id')} in {path} has the template {label!r}, which is no class: fetch them again.")
            plan.add(split, label, str(row["id"]), found.get(str(row["id"])))
        plan.verify(split, count, str(path))
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
