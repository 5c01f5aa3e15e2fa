"""The notebook cells that the store benchmark's kernels run before they are saved. Called by store_tree.py.

The data is made from fixed seeds, but goes through a CSV file as a user's does: what read_csv allocates, frees and
leaves behind is part of a kernel's memory.
"""

from __future__ import annotations

# Chosen so that scale 1 gives snapshots of 0.3 to 1.1 GB, the two notebooks together about 7 GB.
ROWS = 3_000_000
WIDTH, LAYERS, WORDS = 384, 8, 24_000


def parameters(scale: float) -> str:
    """The first cell of each kernel: how large everything is."""
    width = max(64, int(WIDTH * scale**0.5) // 64 * 64)
    return f"ROWS, WIDTH, LAYERS, WORDS = {int(ROWS * scale)}, {width}, {LAYERS}, {int(WORDS * scale**0.5)}"


_WRITE_CSV = """
import sys
import numpy as np, pandas as pd
rows, path = int(sys.argv[1]), sys.argv[2]
draw = np.random.default_rng(7)
start = pd.Timestamp("2025-01-01").value // 10**9 + np.sort(draw.integers(0, 31_536_000, rows))
streets = np.array([f"{a} {b}" for a in ("Oak", "Elm", "Main", "Mill", "Lake", "Hill", "Park", "River")
                    for b in ("Street", "Avenue", "Road", "Lane", "Square")])
frame = pd.DataFrame({
    "trip": np.arange(rows),
    "start": pd.to_datetime(start, unit="s"),
    "driver": draw.zipf(1.3, rows) % 40_000,
    "seats": draw.choice([1, 2, 3, 4, 6], rows, p=[0.6, 0.2, 0.1, 0.07, 0.03]),
    "km": draw.lognormal(1.0, 0.7, rows).round(2),
    "latitude": (52.5 + draw.normal(0, 0.08, rows)).round(5),
    "longitude": (13.4 + draw.normal(0, 0.12, rows)).round(5),
    "street": streets[draw.integers(0, len(streets), rows)],
})
frame["price"] = (3.9 + 2.1 * frame["km"] + draw.normal(0, 1.5, rows)).clip(3.9).round(2)
frame.to_csv(path, index=False)
"""

LOAD_FRAME = f'''
import os, subprocess, sys
import numpy as np, pandas as pd
subprocess.run([sys.executable, "-c", """{_WRITE_CSV}""", str(ROWS), "/tmp/trips.csv"], check=True)
trips = pd.read_csv("/tmp/trips.csv", parse_dates=["start"])
os.remove("/tmp/trips.csv")
trips.describe()
'''

CHANGE_ROWS = """
changed = np.random.default_rng(11).choice(len(trips), len(trips) // 100, replace=False)
trips.loc[changed, "price"] = (trips.loc[changed, "price"] * 1.07).round(2)
trips.loc[changed[: len(changed) // 2], "seats"] += 1
"""

ADD_FEATURES = """
trips["hour"] = trips["start"].dt.hour + trips["start"].dt.minute / 60
trips["per_km"] = trips["price"] / trips["km"]
trips["usual"] = trips.groupby("driver")["price"].transform("mean")
by_day = trips.groupby([trips["start"].dt.date, "street"])["price"].agg(["mean", "sum", "count"])
"""

FIT_MODEL = """
columns = ["seats", "km", "latitude", "longitude", "hour", "usual"]
inputs, target = trips[columns].to_numpy(np.float32), trips["price"].to_numpy(np.float32)
try:
    from sklearn.ensemble import RandomForestRegressor
    picked = np.random.default_rng(3).choice(len(inputs), min(len(inputs), 200_000), replace=False)
    model = RandomForestRegressor(20, min_samples_leaf=3, random_state=0).fit(inputs[picked], target[picked])
    trips["guess"] = model.predict(inputs)
except ImportError:
    lifted = np.tanh(inputs @ np.random.default_rng(3).normal(0, 0.2, (len(columns), 64)).astype(np.float32))
    model = np.linalg.lstsq(lifted, target, rcond=None)[0]
    trips["guess"] = lifted @ model
"""

GO_LEFT = """
worst = (trips["guess"] - trips["price"]).abs().nlargest(len(trips) // 50)
by_street = trips.loc[worst.index].pivot_table(index="street", columns="seats", values="price")
smooth = trips["price"].rolling(500).mean().to_numpy(np.float32)
"""

GO_RIGHT = """
for number in range(3):
    trips[f"lagged_{number}"] = trips["price"].shift(number + 1).ffill().fillna(0)
trips = trips.sort_values("driver", kind="stable")
"""

MAKE_NETWORK = """
import torch
from torch import nn
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, batch_first=True)
network = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False),
                        nn.Linear(WIDTH, WORDS))
words = torch.randint(0, WORDS, (4_000, 64))
"""

INFER = """
network.eval()
with torch.no_grad():
    answers = [network(words[at : at + 4]).argmax(-1) for at in range(0, 16, 4)]
"""

MAKE_OPTIMIZER = """
network.train()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
step = 0
"""

TRAIN = """
for _ in range(4):
    batch = words[4 * step : 4 * step + 4]
    loss = nn.functional.cross_entropy(network(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
"""
