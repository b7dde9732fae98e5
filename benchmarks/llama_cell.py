"""One cell of end_to_end.py, in a Python that has llama-cpp-python and nothing else:  python llama_cell.py JOB"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

import llama_cpp  # type: ignore[import-not-found]


def main(text: str) -> None:
    job = json.loads(text)
    threads, count = job["threads"], job["tokens"]
    model = llama_cpp.Llama(job["path"], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    ids = [(37 * i + 11) % 30_000 for i in range(128)]
    rates, prompts = [], []
    for turn in range(4):
        model.reset()
        began = time.perf_counter()
        model.eval(ids)
        prompts.append(time.perf_counter() - began)
        model.reset()
        model.eval(ids[:32])
        began = time.perf_counter()
        for step in range(count):
            model.eval([500 + step])
        rates.append(count / (time.perf_counter() - began))
        if not turn:  # the first one warms
            rates, prompts = [], []
    found = {
        "per_s": statistics.median(rates),
        "prompt_s": statistics.median(prompts),
        "bytes": os.path.getsize(job["path"]),
    }
    print("RESULT " + json.dumps(found))


main(sys.argv[1])
