"""LibriSpeech as a folder of links, train/, validation/ and test/, a folder a speaker, with the transcripts.

    python datasets/librispeech.py --source FOLDER --out data/librispeech [--parts train-clean-100 dev-clean test-clean]

Card
    Content  Read English of LibriVox's audio books, 16 kHz flac, cut to utterances of up to 35 s: 982 hours, 2,484
             speakers, with transcripts.
    Source   V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "Librispeech: an ASR corpus based on public domain audio
             books", ICASSP 2015; https://www.openslr.org/12: one archive a part.
    Licence  CC BY 4.0.
    Splits   Official parts, whose speakers are disjoint. Utterances: train-clean-100 28,539, train-clean-360 104,014,
             train-other-500 148,688; dev-clean 2,703, dev-other 2,864; test-clean 2,620, test-other 2,939. Counted in
             the transcripts, and verified. dev becomes validation. Papers report test-clean and test-other one by one:
             make a folder of each with --parts.
    Disk     60 GB for everything (train-clean-100: 6.3 GB), which stays where it is; the links take next to nothing.

FOLDER holds, at any depth, the parts as the archives unpack (LibriSpeech/PART/SPEAKER/CHAPTER/*.flac and *.trans.txt).
OUT/metadata.csv has the columns text, chapter and part. Labels are speakers; no speaker of train is in test, so speaker
identification needs a split of its own.
"""

import argparse
from pathlib import Path

from organise import Plan, fail, recordings

COUNTS = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def transcripts(folder: Path) -> dict[str, str]:
    """{utterance: words} of a part."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.trans.txt")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, _, words = line.strip().partition(" ")
            if name.count("-") != 2 or not words:
                fail(f"Line {number} of {path} is not SPEAKER-CHAPTER-NUMBER WORDS: unpack the archive again.")
            found[name] = words
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked parts")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/, validation/ and test/")
    parser.add_argument("--parts", nargs="+", choices=COUNTS, help="only these (default: all that are there)")
    parser.add_argument("--allow-missing", action="store_true", help="go on without the recordings that are not there")
    args = parser.parse_args(argv)
    found = {path.stem: path for path in recordings(args.source, "LibriSpeech")}
    plan = Plan("recordings")
    for part, count in COUNTS.items():
        if args.parts is not None and part not in args.parts:
            continue
        folder = min((path for path in args.source.rglob(part) if path.is_dir()), default=None)
        if args.source.name == part:
            folder = args.source
        if folder is None:
            if args.parts is not None:
                fail(f"{args.source} holds no folder {part}: unpack {part}.tar.gz there, or leave it out of --parts.")
            print(f"{part}: left out, it is not there")
            continue
        words = transcripts(folder)
        if len(words) != count and not args.allow_missing:
            fail(
                f"The transcripts of {folder} are of {len(words):,} utterances, not {count:,}: unpack {part}.tar.gz "
                "again, or go on without what is missing by --allow-missing."
            )
        for name, text in words.items():
            speaker, chapter, _ = name.split("-")
            split = SPLITS[part.partition("-")[0]]
            plan.add(split, speaker, f"{name}.flac", found.get(name), text=text, chapter=chapter, part=part)
    if not plan.listed:
        fail(f"{args.source} holds none of {', '.join(COUNTS)}: unpack the archives of LibriSpeech there.")
    plan.write(args.out, missing_is_normal=args.allow_missing)


if __name__ == "__main__":
    main()
