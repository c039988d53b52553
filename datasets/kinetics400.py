"""Kinetics-400 as a folder of links, train/CLASS/ and val/CLASS/, that mmssl reads.

    python datasets/kinetics400.py --source FOLDER --out data/kinetics400

Card
    Content  Clips of 400 human actions from YouTube, about 10 s each, of any size and rate.
    Source   W. Kay et al., "The Kinetics Human Action Video Dataset", arXiv:1705.06950, 2017. Copies with annotations:
             https://github.com/cvdfoundation/kinetics-dataset; lists alone: https://github.com/activitynet/ActivityNet.
    Licence  CC BY 4.0 for the annotations (recalled); the clips belong to those who uploaded them.
    Splits   The official lists have 246,534 training, 19,906 validation and 38,685 test videos (the last two counted in
             the lists), of which nobody has all: videos vanish from YouTube. The frozen copy of CVDF has 241,258
             training and 19,881 validation videos (counted by a user, issue 51 there); VideoMAE V2 trained on 240,436
             and reports on 19,796 (its docs).
             A per cent of the training videos is worth some tenths of accuracy: state your counts with your numbers.
             Missing videos are normal here: they are counted, listed in OUT/missing.txt, and their share is printed.
             Results are reported on val; the test part is not linked.
    Disk     About 435 GB as fetched, 130 GB at a short side of 340 (both recalled); they stay where they are.
             `mmssl prepare` makes the copy to train on.

FOLDER holds, at any depth, the lists train.csv and val.csv (or validate.csv; columns label, youtube_id, time_start,
time_end) and the videos, in folders of classes or not, named ID_000012_000022.mp4 (by seconds) or ID.mp4.
"""

import argparse
import csv
from pathlib import Path

from organise import Plan, fail, videos

CLASSES = 400
LISTS = {
    "train": ("train.csv", "kinetics_train.csv", "kinetics-400_train.csv"),
    "val": ("val.csv", "validate.csv", "kinetics_val.csv", "kinetics-400_val.csv"),
}
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def find_list(source: Path, split: str) -> Path:
    found = (path for name in LISTS[split] for path in sorted(source.rglob(name)))
    return next(found, None) or fail(
        f"{source} holds no {' or '.join(LISTS[split])}: fetch the annotations of Kinetics-400 there."
    )


def read_list(path: Path) -> list[tuple[str, str, str]]:
    """(class, YouTube id, id with the seconds) of every row."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            fail(f"{path} lacks the columns {', '.join(absent)}: fetch the official annotations, which have a header.")
        rows = []
        for row in reader:
            try:
                start, stop = (int(float(row[name])) for name in ("time_start", "time_end"))
            except (TypeError, ValueError):
                fail(f"Line {reader.line_num} of {path} has no numbers as time_start and time_end: fetch it again.")
            rows.append((row["label"], row["youtube_id"], f"{row['youtube_id']}_{start:06d}_{stop:06d}"))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the videos and the lists")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and val/")
    args = parser.parse_args(argv)
    found: dict[str, Path] = {}
    for path in videos(args.source, "Kinetics-400"):
        if path.stat().st_size:  # a download that failed leaves empty files
            found.setdefault(path.stem, path)
    plan = Plan()
    for split in LISTS:
        path = find_list(args.source, split)
        for label, youtube, clip in read_list(path):
            plan.add(split, label, clip, found.get(clip) or found.get(youtube))
        labels = {name.split("/")[1] for name in [*plan.links, *plan.missing] if name.startswith(f"{split}/")}
        if len(labels) != CLASSES:
            fail(f"{path} names {len(labels)} classes, not {CLASSES}: it is not the list of Kinetics-400.")
    plan.write(args.out, missing_is_normal=True)


if __name__ == "__main__":
    main()
