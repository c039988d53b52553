"""ESC-50 as a folder of links, train/CLASS/ and test/CLASS/, with one of its five folds for testing.

    python datasets/esc50.py --source FOLDER --out data/esc50 [--fold 1]

Card
    Content  2,000 recordings of 5 s, 44.1 kHz mono wav, 40 of each of 50 environmental sounds.
    Source   K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015;
             https://github.com/karolpiczak/ESC-50: the archive of the repository.
    Licence  CC BY-NC 3.0 (the ten classes of ESC-10: CC BY); single clips are named in its LICENSE.
    Splits   Five folds, 400 each, clips of one original recording in the same fold; papers report the mean over all
             five: run --fold 1 ... 5. Counted in meta/esc50.csv, and verified.
    Disk     600 MB (recalled), which stay where they are.

FOLDER holds, at any depth, esc50.csv and the wav files. Columns of OUT/metadata.csv: fold and original (the recording
on freesound.org that a clip was cut from).
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

from organise import Plan, fail, one, recordings

FOLDS, CLASSES, EACH = 5, 50, 40


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the repository, unpacked")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--fold", type=int, choices=range(1, FOLDS + 1), default=1, help="test fold (default: 1)")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the recordings that are not there")
    args = parser.parse_args(argv)
    found = {path.name: path for path in recordings(args.source, "ESC-50")}
    path = one(args.source, "esc50.csv", "unpack the whole archive of ESC-50 there")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filename", "fold", "category", "src_file"} <= set(rows[0]):
        fail(f"{path} lacks the columns filename, fold, category and src_file: unpack the archive again.")
    plan, classes = Plan("recordings"), Counter(row["category"] for row in rows)
    for row in rows:
        split = "test" if row["fold"] == str(args.fold) else "train"
        known = {"fold": row["fold"], "original": row["src_file"]}
        plan.add(split, row["category"], row["filename"], found.get(row["filename"]), **known)
    if len(classes) != CLASSES or set(classes.values()) != {EACH}:
        fail(f"{path} does not list {EACH} clips of each of {CLASSES} classes: unpack the archive again.")
    plan.verify("test", CLASSES * EACH // FOLDS, str(path))
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
