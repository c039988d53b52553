"""VoxCeleb1 as a folder of links, train/, validation/ and test/, a folder a person, for speaker identification.

    python datasets/voxceleb.py --source FOLDER --out data/voxceleb1

Card
    Content  153,516 utterances of 1,251 people out of interviews on YouTube, 16 kHz mono wav, 4 to 145 s, about 352
             hours.
    Source   A. Nagrani, J. S. Chung, A. Zisserman, "VoxCeleb: a large-scale speaker identification dataset",
             arXiv:1706.08612; https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html: the wav archives (dev and
             test) and iden_split.txt.
    Licence  CC BY-SA 4.0 for the data as released (recalled); the recordings belong to those who uploaded them.
    Splits   For identification, by video: train 138,361 / validation 6,904 / test 8,251, every person in each
             (recalled, but their sum is that of the two archives: 148,642 + 4,874). Counted in iden_split.txt, and
             verified. Verification by pairs of recordings (veri_test.txt) is not made here.
    Disk     About 40 GB (recalled), which stay where they are.

FOLDER holds, at any depth, iden_split.txt and the recordings as the archives unpack (ID/VIDEO/00001.wav). Column of
OUT/metadata.csv: video.
"""

import argparse
from pathlib import Path

from organise import Plan, fail, one, recordings

SPLITS = {"1": ("train", 138361), "2": ("validation", 6904), "3": ("test", 8251)}
PEOPLE = 1251


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the recordings and the list")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/, validation/ and test/")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the recordings that are not there")
    args = parser.parse_args(argv)
    found = {"/".join(path.with_suffix("").parts[-3:]): path for path in recordings(args.source, "VoxCeleb1")}
    path = one(args.source, "iden_split.txt", "fetch it from the site of VoxCeleb1 there")
    plan, people = Plan("recordings"), set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        side, _, name = line.strip().partition(" ")
        if side not in SPLITS or name.count("/") != 2:
            fail(f"Line {number} of {path} is not SIDE ID/VIDEO/FILE: fetch the official list again.")
        person, video, file = name.split("/")
        people.add(person)
        recording = found.get(name.rpartition(".")[0])
        as_name = None if recording is None else f"{video}-{recording.name}"
        plan.add(SPLITS[side][0], person, f"{video}/{file}", recording, as_name=as_name, video=video)
    for split, count in SPLITS.values():
        plan.verify(split, count, str(path))
    if len(people) != PEOPLE:
        fail(f"{path} names {len(people):,} people, not {PEOPLE:,}: fetch the official list again.")
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
