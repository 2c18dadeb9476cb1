"""A small shop's tables and mapping, for the tests of the importer."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_def.batch import PackedBatch
from model_def.data.importer import Importer
from model_def.data.logs import Logs
from model_def.data.mapping import Mapping, read_mapping
from model_def.data.samples import select_requests, training_samples

HOUR = 3_600_000
DAY = 24 * HOUR
BORDER = 40 * DAY
"""Where the shop's training time ends, in ms since the epoch."""

MAPPING = """
name = "shop"
requests_from = 1970-01-11
train_until = 1970-02-10
snapshot_days = 7
lifelong_cap = 5
realtime_cap = 3
[interactions]
table = "sales.csv"
user = "who"
item = "what"
time = "when"
request = "basket"
[items]
table = "items.csv"
key = "what"
[users]
table = "users.csv"
key = "who"
[negatives]
count = 4
[profile]
age = { category = "age" }
bought = { past = "count", by = ["user"] }
[item]
kind = { category = "kind" }
maker = { id = "maker" }
[event]
paid = { number = "paid" }
[context]
shop = { id = "shop" }
hour = { clock = "hour" }
weekday = { clock = "weekday" }
[cross]
count = { past = "count", by = ["user", "item_id"] }
count_week = { past = "count", by = ["kind"], days = 7 }
recency = { past = "recency", by = ["user", "kind"] }
price = { past = "ratio", of = ["paid", "pieces"], by = ["item_id"] }
price_lately = { past = "ratio", of = ["paid", "pieces"], by = ["maker"], days = 3 }
lift = { past = "lift", by = ["shop", "kind"] }
trend = { past = "trend", by = ["item_id"], days = 5 }
"""

SALES = ("who", "what", "when", "basket", "paid", "pieces", "shop")
Row = tuple[object, ...]

ITEMS: list[Row] = [(i, f"kind {i % 3}", f"maker {i % 5}") for i in range(12)]
USERS: list[Row] = [(f"user {i}", "old" if i % 2 else "young") for i in range(3)]


def random_sales(
    rng: np.random.Generator, rows: int, since: int, until: int, tag: str
) -> list[Row]:
    """Baskets of one to three sales each; item 12 and above are in no table of items."""
    sales: list[Row] = []
    while len(sales) < rows:
        who, when = f"user {rng.integers(4)}", int(rng.integers(since, until))
        basket = f"{tag} {len(sales)}"
        for _ in range(rng.integers(1, 4)):
            paid, pieces = round(float(rng.random()) * 10, 2), rng.integers(0, 3)
            sales.append((who, rng.integers(14), when, basket, paid, pieces, rng.integers(2)))
    return sales


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path.write_text(text.getvalue())


def shop(directory: Path, sales: Sequence[Row], mapping: str = MAPPING) -> Mapping:
    """Write the shop's tables into `directory` and return its mapping."""
    write_csv(directory / "sales.csv", SALES, sales)
    write_csv(directory / "items.csv", ("what", "kind", "maker"), ITEMS)
    write_csv(directory / "users.csv", ("who", "age"), USERS)
    (directory / "shop.toml").write_text(mapping)
    return read_mapping(directory / "shop.toml")


def import_shop(directory: Path, sales: Sequence[Row]) -> Importer:
    return Importer(shop(directory, sales), directory)


def packed_requests(logs: Logs) -> dict[str, tuple[bytes, PackedBatch, bytes]]:
    """Every request by id as the model sees it: its batch's bytes, the batch, its labels."""
    out = {}
    for i, request_id in enumerate(logs.requests.request_id.tolist()):
        one = select_requests(logs, np.arange(len(logs.requests.request_id)) == i)
        (sample,) = training_samples(one)
        labels = one.requests.click.tobytes()
        out[request_id] = (sample.batch.buffer.tobytes(), sample.batch, labels)
    return out
