"""Free Spoken Digits as a folder of links, train/DIGIT/ and test/DIGIT/, split by speaker.

    python datasets/spoken_digits.py --source FOLDER --out data/digits --test-speaker theo

Card
    Content  3,000 recordings of one English digit, 8 kHz mono wav, 0.1 to 2.3 s: 6 people, 10 digits, 50 times each.
    Source   Z. Jackson et al., Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset.
    Licence  CC BY-SA 4.0.
    Splits   --test-speaker leaves one of george, jackson, lucas, nicolas, theo, yweweler out for testing (2,500 / 500);
             report the mean over all six. Without it, the official split: recordings 0 to 4 of each are test
             (2,700 / 300), which is saturated: linear on log-mel in 4 pieces of time gives .970 there and .632 leaving
             one speaker out (40 bands, logistic regression).
    Disk     30 MB, which stay where they are.

FOLDER holds, at any depth, recordings/DIGIT_SPEAKER_NUMBER.wav. Columns of OUT/metadata.csv: speaker, and text (the
digit as a word).
"""

import argparse
from pathlib import Path

from organise import Plan, fail, recordings

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH, TEST_EACH = 50, 5


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the recordings")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--test-speaker", choices=SPEAKERS, help="test on this speaker (default: the official split)")
    args = parser.parse_args(argv)
    found = {path.name: path for path in recordings(args.source, "the Free Spoken Digit Dataset")}
    plan = Plan("recordings")
    for digit, word in enumerate(WORDS):
        for speaker in SPEAKERS:
            for number in range(EACH):
                held_out = number < TEST_EACH if args.test_speaker is None else speaker == args.test_speaker
                name = f"{digit}_{speaker}_{number}.wav"
                plan.add("test" if held_out else "train", str(digit), name, found.get(name), speaker=speaker, text=word)
    if not plan.links:
        fail(f"{args.source} holds no DIGIT_SPEAKER_NUMBER.wav: give the folder of the repository, unpacked.")
    plan.write(args.out)


if __name__ == "__main__":
    main()
