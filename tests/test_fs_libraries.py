"""What opens files through fsspec, on a real daemon: pandas, pyarrow, dask, zarr."""

from __future__ import annotations

import pytest

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")

from pfsd.fs import PfsFileSystem  # noqa: E402
from tests.harness import Daemon  # noqa: E402


@pytest.fixture
def url(shared_daemon: Daemon) -> str:
    return f"pfs://127.0.0.1:{shared_daemon.port}"


@pytest.fixture
def fs(shared_daemon: Daemon) -> PfsFileSystem:
    return PfsFileSystem("127.0.0.1", shared_daemon.port)


# --- pandas and pyarrow -------------------------------------------------------------------------


def test_pandas_reads_what_it_wrote(url: str, fs: PfsFileSystem) -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    frame = pd.DataFrame({"x": range(200_000), "y": [str(number) for number in range(200_000)]})
    frame.to_parquet(f"{url}/pandas/frame.parquet", row_group_size=20_000)
    assert pd.read_parquet(f"{url}/pandas/frame.parquet").equals(frame)
    some = pd.read_parquet(f"{url}/pandas/frame.parquet", columns=["x"], filters=[("x", ">", 190_000)])
    assert len(some) == 9_999
    frame.to_csv(f"{url}/pandas/frame.csv", index=False)
    back = pd.read_csv(f"{url}/pandas/frame.csv", dtype={"y": "str"}, chunksize=50_000)
    assert pd.concat(back).equals(frame)
    frame[:5].to_json(f"{url}/pandas/frame.json")
    assert len(pd.read_json(f"{url}/pandas/frame.json")) == 5
    with pytest.raises(FileNotFoundError):
        pd.read_csv(f"{url}/pandas/none.csv")


def test_pyarrow_uses_all_of_the_file_system(fs: PfsFileSystem) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.dataset as ds
    import pyarrow.fs as arrow_fs
    import pyarrow.parquet as pq

    store = arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(fs))
    table = pa.table({"part": [number % 3 for number in range(3000)], "x": list(range(3000))})
    write = {"format": "parquet", "partitioning": ["part"], "filesystem": store}
    ds.write_dataset(table, "arrow/set", **write)
    ds.write_dataset(table, "arrow/set", existing_data_behavior="delete_matching", **write)
    dataset = ds.dataset("arrow/set", format="parquet", partitioning=["part"], filesystem=store)
    assert dataset.to_table().num_rows == 3000
    assert dataset.to_table(filter=ds.field("part") == 1).num_rows == 1000
    info = store.get_file_info(["arrow/set", "arrow/none", "arrow/set/0/part-0.parquet"])
    assert [one.type for one in info] == [
        arrow_fs.FileType.Directory,
        arrow_fs.FileType.NotFound,
        arrow_fs.FileType.File,
    ]
    assert info[2].mtime_ns == fs.info("arrow/set/0/part-0.parquet")["mtime"] * 10**9
    below = store.get_file_info(arrow_fs.FileSelector("arrow", recursive=True))
    assert len([one for one in below if one.type == arrow_fs.FileType.File]) == 3
    store.move("arrow/set/0/part-0.parquet", "arrow/moved.parquet")
    store.copy_file("arrow/moved.parquet", "arrow/copy.parquet")
    assert pq.read_table("arrow/copy.parquet", filesystem=store).num_rows == 1000
    with store.open_output_stream("arrow/raw") as stream:
        stream.write(b"hello")
    with store.open_input_file("arrow/raw") as file:
        assert file.read_at(3, 1) == b"ell"
    store.delete_file("arrow/raw")
    store.delete_dir("arrow/set")
    assert fs.find("arrow") == ["arrow/copy.parquet", "arrow/moved.parquet"]
    store.delete_dir_contents("arrow")
    assert fs.find("arrow") == []


# --- dask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_reads_what_it_wrote(url: str, fs: PfsFileSystem, scheduler: str) -> None:
    dask = pytest.importorskip("dask", reason="dask is not installed")
    dd = pytest.importorskip("dask.dataframe", reason="dask[dataframe] is not installed")
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        frame = dd.from_pandas(pd.DataFrame({"x": range(10_000)}), npartitions=3)
        frame.to_parquet(f"{url}/dask/{scheduler}")
        assert len(fs.glob(f"dask/{scheduler}/*.parquet")) == 3
        assert dd.read_parquet(f"{url}/dask/{scheduler}")["x"].sum().compute() == sum(range(10_000))
        if scheduler == "threads":
            frame.to_csv(f"{url}/dask/csv/*.csv")
            assert len(dd.read_csv(f"{url}/dask/csv/*.csv", blocksize=10_000)) == 10_000


# --- zarr ---------------------------------------------------------------------------------------


def test_zarr_arrays_in_groups(url: str) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 is not installed")
    group = zarr.open_group(f"{url}/zarr/group", mode="w")
    array = group.create_array("inner/x", shape=(40, 40), chunks=(10, 10), shards=(20, 20), dtype="i4")
    array[:] = 7
    again = zarr.open_group(f"{url}/zarr/group", mode="r")
    assert again["inner/x"][5:15, 5:15].sum() == 700
    assert [name for name, _ in again["inner"].members()] == ["x"]
    assert zarr.open_group(f"{url}/zarr/group", mode="w").nmembers() == 0
