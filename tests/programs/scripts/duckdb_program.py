import duckdb


def begin():
    global file, memory
    file = duckdb.connect("own.duckdb")
    file.execute("create or replace table t as select range a, random() b from range(300000)")
    file.execute("begin; insert into t values (-1, 0)")  # a transaction stays open
    memory = duckdb.connect()
    memory.execute("create table m as select * from range(100000)")


def ask(count):
    file.execute("insert into t values (-1, 0)")
    file.execute("commit; begin")
    assert file.execute("select count(*) from t where a = -1").fetchone()[0] == count + 1
    assert memory.execute("select sum(range) from m").fetchone()[0] == 4999950000
