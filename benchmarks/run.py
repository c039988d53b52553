"""`make bench`: every comparison in one run, written to RESULTS.md under a heading that names the machine."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

from timing import machine

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
PARTS = ("train_step", "hubert", "hubert_head", "input_path", "prepare", "audio_input", "data_wait", "kmeans")


def main() -> None:
    sections: list[str] = []
    failed: list[str] = []
    for part in PARTS:
        print(f"benchmarks/{part}.py ...", flush=True)
        # A process each: thread settings and allocator state of one must not colour the next.
        done = subprocess.run([sys.executable, f"benchmarks/{part}.py"], stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        failed += [part] if done.returncode else []
        sections.append(f"### {part}.py failed" if done.returncode else done.stdout.strip())
    heading = f"## `make bench`, {datetime.date.today()}\n\n{machine()}. Ratios: above 1 is faster than the last row."
    block = "\n\n".join([BEGIN, heading, *sections, END])
    text = RESULTS.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[-1]
    RESULTS.write_text(before + block + after, encoding="utf-8")
    print(f"Written to {RESULTS}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. What they said stands above.")


if __name__ == "__main__":
    main()
