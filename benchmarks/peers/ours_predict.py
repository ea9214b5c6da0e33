"""Photos through a bundle, as `handlens predict BUNDLE PHOTOS --csv FILE` does it, timed without start-up."""

from __future__ import annotations

import csv
import json
import sys
import time

import handlens

given = json.loads(sys.argv[1])
classifier = handlens.load(given["bundle"], threads=given.get("threads", 0))
list(classifier.predict_many(given["photos"][:8], 1))  # the runtime's first call
start = time.perf_counter()
labels = []
with open(given["csv"], "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    for path, guesses in classifier.predict_many(given["photos"], 1):
        best = guesses[0]
        labels.append(classifier.classes.index(best.name))
        writer.writerow([path, best.name, f"{best.probability:.6f}"])
print(json.dumps({"photos": len(labels), "seconds": time.perf_counter() - start, "labels": labels}))
