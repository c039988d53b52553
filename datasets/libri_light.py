"""Libri-Light as a folder of links, train/SPEAKER/, that `mmssl pretrain --data` reads.

    python datasets/libri_light.py --source FOLDER --out data/libri-light [--parts small medium]

Card
    Content  Read English of LibriVox's audio books without transcripts, 16 kHz flac, whole chapters of minutes to
             hours. small 577 hours, 489 speakers; medium 5,194 hours more; large 51,934 hours more (together 57,706
             hours, 7,439 speakers, 219,041 files).
    Source   J. Kahn et al., "Libri-Light: A Benchmark for ASR with Limited or No Supervision", arXiv:1912.07875;
             https://github.com/facebookresearch/libri-light: small.tar, medium.tar, large.tar.
    Licence  The recordings are in the public domain (LibriVox); the code beside them is MIT.
    Splits   For pre-training alone, so everything is train. Parts are disjoint in recordings.
    Disk     35 GB, 321 GB and 3.05 TB (recalled); they stay where they are.

FOLDER holds, at any depth, the folders small, medium or large as the archives unpack (PART/SPEAKER/BOOK/*.flac, with a
.json beside each). Every .json needs its recording: what is missing is counted and listed in OUT/missing.txt. The
numbers of files a part are not verified, since no list of them is published beside the archives.

Recordings need not be cut: recipes that train by seconds of audio take as many crops of a chapter, a pass, as it is
long. Columns of OUT/metadata.csv: part, book, snr (dB, as the .json estimates it).
"""

import argparse
import json
from pathlib import Path

from organise import Plan, fail, recordings

PARTS = ("small", "medium", "large")


def facts(path: Path) -> dict[str, str]:
    """What the .json of a recording says."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"speaker": str(known["speaker"]), "snr": f"{float(known['snr']):.2f}"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} cannot be read ({error!r}): unpack the archive again.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked parts")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these (default: all that are there)")
    args = parser.parse_args(argv)
    found = {path.with_suffix("").as_posix(): path for path in recordings(args.source, "Libri-Light")}
    plan = Plan("recordings")
    for path in sorted(args.source.rglob("*.json")):
        if len(path.parts) < 4 or (part := path.parts[-4]) not in (args.parts or PARTS):
            continue
        known = facts(path)
        speaker, book = known.pop("speaker"), path.parent.name
        recording = found.get(path.with_suffix("").as_posix())
        name = f"{part}-{book}-{path.stem}.flac"  # chapters of several books have the same name
        plan.add("train", speaker, name, recording, as_name=name, part=part, book=book, **known)
    if not plan.listed:
        fail(
            f"{args.source} holds no {' or '.join(args.parts or PARTS)}/SPEAKER/BOOK/*.json: unpack the archives there."
        )
    plan.write(args.out, missing_is_normal=True)


if __name__ == "__main__":
    main()
