"""AudioSet as a folder of links, train/ and test/, with the names of the sounds in each clip.

    python datasets/audioset.py --source FOLDER --out data/audioset [--train balanced]

Card
    Content  10 s of YouTube each, with one or more of 527 kinds of sound.
    Source   J. F. Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events", ICASSP 2017;
             https://research.google.com/audioset/download.html: balanced_train_segments.csv,
             unbalanced_train_segments.csv, eval_segments.csv, class_labels_indices.csv.
    Licence  CC BY 4.0 for the lists; the clips belong to those who uploaded them.
    Splits   The lists say themselves how many segments they have (22,160 balanced, 2,041,789 unbalanced, 20,371 for
             evaluation; recalled), and that is verified. Nobody has all: videos vanish. Papers report the mean average
             precision on their own copy of the evaluation clips: state your counts with your numbers. Missing clips are
             counted and listed in OUT/missing.txt.
    Disk     About 49 GB for balanced and evaluation, over 1 TB for everything, by format; they stay where they are.

FOLDER holds, at any depth, the lists and the clips, named ID, YID, ID_START, YID_START or ID_START_END (seconds, or
milliseconds), in any format of sound. Clips have several labels, so they have no class folder: OUT/metadata.csv has
their names in the column events, divided by semicolons. mmssl has no multi-label probe; this is for pre-training.
"""

import argparse
import csv
import re
from pathlib import Path

from organise import Plan, fail, one, recordings

LISTS = {"balanced": "balanced_train_segments.csv", "unbalanced": "unbalanced_train_segments.csv"}
NAME = re.compile(r"(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?")
HOW = "fetch it from https://research.google.com/audioset/download.html there"


def read_list(path: Path) -> list[tuple[str, int, list[str]]]:
    """(YouTube id, start in seconds, label ids) of every segment; their number is what the head of the list says."""
    rows, promised = [], None
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), 1):
            if row and row[0].startswith("#"):
                if count := re.search(r"num_segs=(\d+)", ",".join(row)):
                    promised = int(count[1])
                continue
            try:
                rows.append((row[0], int(float(row[1])), row[3].split(",")))
            except (IndexError, ValueError):
                fail(f"Line {number} of {path} is not ID, START, END, LABELS: {HOW}.")
    if promised is not None and len(rows) != promised:
        fail(f"{path} has {len(rows):,} segments and its head says {promised:,}: it was cut off, so {HOW}.")
    return rows


def by_clip(paths: list[Path]) -> dict[tuple[str, int | None], Path]:
    """Recordings by (YouTube id, start in seconds); without a start where the name has none."""
    found: dict[tuple[str, int | None], Path] = {}
    for path in paths:
        # An id has 11 characters, and some downloaders put a Y before it.
        stem = path.stem
        match = NAME.fullmatch(stem) or (NAME.fullmatch(stem[1:]) if stem.startswith("Y") else None)
        if match is None or not path.stat().st_size:  # a download that failed leaves empty files
            continue
        start = None if match["start"] is None else float(match["start"])
        if start is not None and start >= 10_000 and start % 1000 == 0:
            start /= 1000
        found.setdefault((match["id"], None if start is None else int(start)), path)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the clips and the lists")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--train", nargs="+", choices=LISTS, default=list(LISTS), help="training lists (default: both)")
    args = parser.parse_args(argv)
    found = by_clip(recordings(args.source, "AudioSet"))
    with open(one(args.source, "class_labels_indices.csv", HOW), encoding="utf-8", newline="") as file:
        names = {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    plan = Plan("recordings")
    for split, name in [("train", LISTS[kind]) for kind in args.train] + [("test", "eval_segments.csv")]:
        for clip, start, labels in read_list(one(args.source, name, HOW)):
            if unknown := [label for label in labels if label not in names]:
                fail(f"{name} has the label {unknown[0]}, which class_labels_indices.csv does not name: {HOW}.")
            path = found.get((clip, start)) or found.get((clip, None))
            plan.add(split, "", clip, path, events=";".join(names[label] for label in labels))
    plan.write(args.out, missing_is_normal=True)


if __name__ == "__main__":
    main()
