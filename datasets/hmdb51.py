"""HMDB51 as a folder of links, train/CLASS/ and test/CLASS/, that `mmssl pretrain --data` and `mmssl evaluate` read.

    python datasets/hmdb51.py --source FOLDER --out data/hmdb51 [--split 1]

Card
    Content  6,766 clips of 51 human actions, mostly from films, some from YouTube and archives; 240 pixels high, 30
             frames/s (size and rate recalled).
    Source   H. Kuehne, H. Jhuang, E. Garrote, T. Poggio, T. Serre, "HMDB: A Large Video Database for Human Motion
             Recognition", ICCV 2011; https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/:
             hmdb51_org.rar (a .rar a class in it) and test_train_splits.rar.
    Licence  CC BY 4.0 is given for the annotations (recalled); the films belong to their owners. Do not pass them on.
    Splits   Three official ones, of which papers report the first or the mean: 70 training and 30 test clips a class,
             3,570 / 1,530, verified. The others (0 in the lists, 1,666 clips) are in no part of that split.
    Disk     2.1 GB of videos, which stay where they are; the links take next to nothing.

FOLDER holds, at any depth, the class folders with *.avi and the lists CLASS_test_split1.txt ... of all classes.
"""

import argparse
from pathlib import Path

from organise import Plan, by_stem, fail, videos

CLASSES, TRAIN, TEST = 51, 70, 30
SPLITS = {"1": "train", "2": "test"}  # 0 is neither


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the videos and the lists")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="official split (default: 1)")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the videos that are not there")
    args = parser.parse_args(argv)
    paths = videos(args.source, "HMDB51")
    found = {path.parent.name: by_stem(p for p in paths if p.parent == path.parent) for path in paths}
    ending = f"_test_split{args.split}.txt"
    lists = sorted(args.source.rglob(f"*{ending}"))
    if len(lists) != CLASSES:
        fail(f"{args.source} holds {len(lists)} lists *{ending}, not {CLASSES}: unpack test_train_splits.rar there.")
    plan = Plan()
    for path in lists:
        label = path.name.removesuffix(ending)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            name, _, mark = line.strip().rpartition(" ")
            if mark not in ("0", "1", "2") or not name:
                fail(f"Line {number} of {path} is not FILE and 0, 1 or 2: fetch the official lists again.")
            if mark in SPLITS:
                name = name.strip()
                plan.add(SPLITS[mark], label, name, found.get(label, {}).get(Path(name).stem.lower()))
    plan.verify("train", CLASSES * TRAIN, f"The {CLASSES} lists *{ending}")
    plan.verify("test", CLASSES * TEST, f"The {CLASSES} lists *{ending}")
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
