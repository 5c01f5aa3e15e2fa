import polars


def begin():
    global lazy
    frame = polars.DataFrame({"a": range(200000), "b": [i % 7 for i in range(200000)]})
    frame.write_parquet("own.parquet")
    lazy = polars.scan_parquet("own.parquet")
    ask(0)


def ask(count):
    assert lazy.group_by("b").agg(polars.col("a").sum()).collect()["a"].sum() == 19999900000
