"""UCF101 as a folder of links, train/CLASS/ and test/CLASS/, that `mmssl pretrain --data` and `mmssl evaluate` read.

    python datasets/ucf101.py --source FOLDER --out data/ucf101 [--split 1]

Card
    Content  13,320 clips of 101 human actions from YouTube, 320x240, 25 frames/s, about 27 hours; 25 groups a class,
             the clips of a group being of one recording.
    Source   K. Soomro, A. R. Zamir, M. Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild",
             arXiv:1212.0402, 2012; https://www.crcv.ucf.edu/data/UCF101.php: UCF101.rar, and
             UCF101TrainTestSplits-RecognitionTask.zip with the lists.
    Licence  None is stated: for research; the clips belong to those who uploaded them. Do not pass them on.
    Splits   Three official ones, of which papers report the first or the mean: train 9,537 / test 3,783 (1),
             9,586 / 3,734 (2), 9,624 / 3,696 (3). Groups are never on both sides. Counted in the lists themselves, and
             verified.
    Disk     6.9 GB of videos, which stay where they are; the links take next to nothing.

FOLDER holds, at any depth, the class folders with v_*.avi and the lists trainlist01.txt ... testlist03.txt.

A trap that has cost many a tenth of a per cent: the class is called HandstandPushups, its files v_HandStandPushups_*.
Copies differ in which of the two they mended, so names are compared without regard to case, and the class has one name.
"""

import argparse
from pathlib import Path

from organise import Plan, by_stem, fail, one, videos

COUNTS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}
CLASSES = 101


def read_list(path: Path) -> list[tuple[str, str]]:
    """(class, file name) of every line of a list; training lists have the number of the class after it."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        label, slash, name = line.split()[0].partition("/")
        if not slash:
            fail(f"Line {number} of {path} is not CLASS/FILE: fetch the official lists again.")
        rows.append(("HandstandPushups" if label.lower() == "handstandpushups" else label, name))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the videos and the lists")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--split", type=int, choices=COUNTS, default=1, help="official split (default: 1)")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the videos that are not there")
    args = parser.parse_args(argv)
    found = by_stem(videos(args.source, "UCF101"))
    plan = Plan()
    for split, count in zip(("train", "test"), COUNTS[args.split], strict=True):
        path = one(args.source, f"{split}list{args.split:02d}.txt", "unpack the train/test splits there")
        for label, name in read_list(path):
            plan.add(split, label, name, found.get(Path(name).stem.lower()))
        plan.verify(split, count, str(path))
    labels = {name.split("/")[1] for name in [*plan.links, *plan.missing]}
    if len(labels) != CLASSES:
        fail(f"The lists in {args.source} name {len(labels)} classes, not {CLASSES}: fetch the official lists again.")
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
