"""The cells that the demo runs: what a person would type into a notebook."""

LOAD = """\
import numpy as np, pandas as pd
rng = np.random.default_rng(7)
rides = pd.DataFrame({
    "km": rng.gamma(2.0, 3.0, 6_000_000),
    "minutes": rng.gamma(3.0, 5.0, 6_000_000),
    "zone": rng.integers(0, 265, 6_000_000),
})
rides["fare"] = 2.5 + 1.6 * rides.km + 0.4 * rides.minutes + rng.normal(0, 1.5, len(rides))
print(f"{len(rides):,} rides, {rides.memory_usage().sum() / 1e6:.0f} MB")
"""

PREPARE = """\
import subprocess, sys
rides.loc[:200_000, "fare"] = rides.fare[:200_001].clip(3, 80)

def fit(name, shape):
    global best
    sample = rides[:200_000]
    X = np.column_stack([np.ones(len(sample)), shape(sample.km), sample.minutes])
    coef, *_ = np.linalg.lstsq(X, sample.fare, rcond=None)
    error = float(np.abs(X @ coef - sample.fare).mean())
    best = f"{name}: off by {error:.3f} a ride"
    open("report.txt", "w").write(best + "\\n")
    print(best)

server = subprocess.Popen([sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("fares capped, fit() ready, this directory served on port 8000")
"""

FIT = 'fit("linear in km", lambda km: km)'
FIT_ROOT = 'fit("square root of km", np.sqrt)'
FIT_LOG = 'fit("logarithm of km", np.log1p)'

GO_ON = """\
best += ", and the original went on"
open("report.txt", "w").write(best + "\\n")
print(best)
"""

ASK = "print(best)"

FETCH = """\
import time, urllib.request
for attempt in range(50):
    try:
        page = urllib.request.urlopen("http://127.0.0.1:8000/report.txt", timeout=10).read().decode()
        break
    except ConnectionError:
        time.sleep(0.1)
print(page, end="")
"""

TOUCH_ALL = "print(int(rides.zone.sum()), len(rides))"
