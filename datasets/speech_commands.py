"""Speech Commands as a folder of links, train/WORD/, validation/WORD/ and test/WORD/.

    python datasets/speech_commands.py --source FOLDER --out data/speech-commands

Card
    Content  Words of at most 1 s, 16 kHz mono wav, said by 2,618 people (version 2): 105,829 of 35 words in version
             2, 64,727 of 30 words in version 1.
    Source   P. Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", arXiv:1804.03209;
             speech_commands_v0.02.tar.gz or speech_commands_v0.01.tar.gz of download.tensorflow.org.
    Licence  CC BY 4.0.
    Splits   validation_list.txt and testing_list.txt, the rest is train; a speaker is on one side only. Version 2:
             84,843 / 9,981 / 11,005; version 1: 51,094 / 6,798 / 6,835 (recalled, but their sums are the paper's). The
             version is known by its count, and the splits are verified.
    Disk     2.3 GB (version 2) or 1.4 GB packed; the unpacked files stay where they are.

FOLDER is the folder that the archive unpacks into, with the folders of words and the two lists. The six long
recordings of _background_noise_ are not linked. Accuracy over all words is what probes report ("SCv2-35"); the
12-class version of the task (ten words, unknown, silence) draws its unknown words at random and is not made here.
Column of OUT/metadata.csv: speaker (its hash in the file's name).
"""

import argparse
from collections import Counter
from pathlib import Path

from organise import Plan, fail, recordings

COUNTS = {
    105829: ("version 2", {"train": 84843, "validation": 9981, "test": 11005}),
    64727: ("version 1", {"train": 51094, "validation": 6798, "test": 6835}),
}
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that the archive unpacks into")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/, validation/ and test/")
    parser.add_argument("--allow-missing", action="store_true", help="take any number of recordings")
    args = parser.parse_args(argv)
    found = {
        f"{path.parent.name}/{path.name}": path
        for path in recordings(args.source, "Speech Commands")
        if path.parent.parent == args.source and not path.parent.name.startswith("_")
    }
    split_of: dict[str, str] = {}
    for split, name in LISTS.items():
        if not (args.source / name).is_file():
            fail(f"{args.source} holds no {name}: give the folder that the archive of Speech Commands unpacks into.")
        for line in (args.source / name).read_text(encoding="utf-8").split():
            split_of[line] = split
    plan = Plan("recordings")
    for name in sorted({*found, *split_of}):
        word, _, file = name.partition("/")
        plan.add(split_of.get(name, "train"), word, file, found.get(name), speaker=file.partition("_")[0])
    if not args.allow_missing:
        if plan.listed.total() not in COUNTS:
            official = " or ".join(f"{count:,} ({version})" for count, (version, _) in COUNTS.items())
            fail(f"{args.source} has {plan.listed.total():,} words, not {official}: unpack the archive again.")
        for split, count in COUNTS[plan.listed.total()][1].items():
            plan.verify(split, count, str(args.source))
    speakers: dict[str, set[str]] = {split: set() for split in ("train", "validation", "test")}
    for name, known in plan.metadata.items():
        speakers[name.partition("/")[0]].add(known["speaker"])
    shared = Counter(speaker for people in speakers.values() for speaker in people)
    if shared and max(shared.values()) > 1:
        fail(f"Speaker {max(shared, key=shared.__getitem__)} is on two sides: the lists are of another version.")
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
