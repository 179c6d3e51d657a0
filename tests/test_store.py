"""The content-addressed store: identities, atomicity, locks, damage, garbage collection, export and import."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest

from hallmark.errors import BudgetExhausted, ConfigError, HallmarkError, StoreError, TrainingError
from hallmark.stages import cli
from hallmark.stages.store import LockedError, Store, canonical, digest


def make(store: Store, identity: dict, **files: str) -> str:
    key = digest(identity)
    with store.writing(key, identity) as work:
        assert work is not None
        for name, text in files.items():
            (work / name).write_text(text)
    return key


def leave(store: Store, identity: dict, error: BaseException, text: str = "epoch 3") -> None:
    """Write a checkpoint and leave the block by an exception."""
    with store.writing(digest(identity), identity) as work:
        (work / "checkpoints").mkdir(exist_ok=True)
        (work / "checkpoints" / "last").write_text(text)
        raise error


def interrupt(store: Store, identity: dict, text: str = "epoch 3") -> str:
    with pytest.raises(BudgetExhausted):
        leave(store, identity, BudgetExhausted(), text)
    return digest(identity)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def visible(root: Path) -> dict[str, bytes]:
    """Everything in a store but its lock files, which stay."""
    return {name: data for name, data in tree(root).items() if not name.startswith("locks/")}


def child(script: str, *arguments: object) -> subprocess.Popen:
    prelude = "import sys, time\nfrom pathlib import Path\nfrom hallmark.stages.store import Store, digest\n"
    command = [sys.executable, "-c", prelude + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HOLD = """
store, identity = Store(Path(sys.argv[1])), {"stage": sys.argv[2]}
with store.writing(digest(identity), identity) as work:
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "last").write_text("epoch 7")
    (work / "half").write_text("ha")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# --- identities


def test_canonical_text_is_sorted_dense_and_unescaped():
    document = {"b": [1, 2.5, None, True], "a": {"z": "é", "y": []}}
    assert canonical(document) == '{"a":{"y":[],"z":"é"},"b":[1,2.5,null,true]}'
    assert digest({}) == hashlib.sha256(b"{}").hexdigest()


def test_key_order_and_tuples_do_not_matter():
    one = {"lr": 0.1, "sizes": (1, 2), "sub": {"x": 1, "y": 2}}
    two = OrderedDict([("sub", {"y": 2, "x": 1}), ("sizes", [1, 2]), ("lr", 0.1)])
    assert digest(one) == digest(two)
    assert digest(one) == digest(json.loads(canonical(one)))


def test_different_documents_have_different_keys():
    documents = [{"a": value} for value in (1, 1.0, True, "1", None, [1], [], {}, "", 0, False, 1e-300)]
    assert len({digest(document) for document in documents}) == len(documents)
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"config": {"lr": float("nan")}}, "config.lr"),
        ({"config": {"steps": [1, {"at": float("-inf")}]}}, "config.steps[1].at"),
        ({"root": Path("x")}, "root"),
        ({"layers": {1, 2}}, "layers"),
        ({"raw": b"x"}, "raw"),
        ({"config": {1: "x"}}, "config"),
        ({"name": "\ud800"}, "name"),
        ({"config": {"\ud800": 1}}, "config"),
        (float("inf"), "the document"),
    ],
)
def test_what_json_cannot_say_is_refused_by_path(document: object, path: str):
    with pytest.raises(ConfigError) as caught:
        canonical(document)
    assert path in str(caught.value).split(",")[0]
    assert "\n" not in str(caught.value)


# --- writing


def test_reading_makes_nothing(store: Store):
    assert store.keys() == store.unfinished() == set()
    assert not store.has("0" * 64)
    with pytest.raises(StoreError, match="no finished stage 0000"):
        store.open("0" * 64)
    assert not store.root.exists()


def test_written_stage_is_found_with_its_identity(store: Store):
    identity = {"stage": "embed", "config": {"lr": 0.1, "name": "é"}}
    key = make(store, identity, model="weights", metrics="{}")
    again = Store(store.root)
    assert again.keys() == {key}
    assert again.has(key)
    assert again.identity(key) == identity
    folder = again.open(key)
    assert (folder / "model").read_text() == "weights"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["model"] == {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    assert manifest["files"].keys() == {"model", "metrics"}
    assert manifest["seconds"] >= 0
    assert manifest["created_by"].keys() == {"hallmark", "torch", "torchvision", "lightly", "pytorch-lightning"}


def test_finished_stage_is_not_made_again(store: Store):
    key = make(store, {"stage": "a"}, x="1")
    with store.writing(key, {"stage": "a"}) as work:
        assert work is None


def test_checkpoints_are_dropped_and_subfolders_kept(store: Store):
    identity = {"stage": "a"}
    with store.writing(digest(identity), identity) as work:
        for folder in ("checkpoints", "figures"):
            (work / folder).mkdir()
            (work / folder / "x").write_text("x")
    assert tree(store.open(digest(identity))).keys() == {"figures/x", "manifest.json"}
    assert store.unfinished() == set()


def test_bad_input_leaves_nothing(store: Store):
    identity = {"stage": "a"}
    interrupt(store, identity)
    with pytest.raises(TrainingError, match="diverged"):
        leave(store, identity, TrainingError("diverged"))
    assert visible(store.root) == {}
    assert store.unfinished() == store.keys() == set()
    make(store, identity, x="1")  # and the key is free


def have_an_accident(store: Store, identity: dict, *files: str) -> None:
    with store.writing(digest(identity), identity) as work:
        for name in files:
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("x")
        raise RuntimeError("out of memory")


def test_accident_leaves_the_checkpoints_alone(store: Store):
    identity = {"stage": "a"}
    key = digest(identity)
    with pytest.raises(RuntimeError, match="out of memory"):
        have_an_accident(store, identity, "checkpoints/x", "figures/x", "half")
    assert visible(store.root).keys() == {f"work/{key}/checkpoints/x"}
    with store.writing(key, identity) as work:
        assert (work / "checkpoints" / "x").exists(), "the next run goes on from there"


def test_accident_without_checkpoints_leaves_nothing(store: Store):
    identity = {"stage": "a"}
    with pytest.raises(RuntimeError, match="out of memory"):
        have_an_accident(store, identity, "half")
    assert visible(store.root) == {}


@pytest.mark.parametrize("kind", [BudgetExhausted, KeyboardInterrupt, SystemExit])
def test_interruption_keeps_the_work_folder(store: Store, kind: type[BaseException]):
    identity = {"stage": "a"}
    key = digest(identity)
    with pytest.raises(kind):
        leave(store, identity, kind())
    assert not store.has(key)
    assert store.unfinished() == {key}
    with store.writing(key, identity) as work:
        assert (work / "checkpoints" / "last").read_text() == "epoch 3"
    assert store.has(key)


def test_run_killed_just_before_the_rename_is_finished_by_the_next(store: Store):
    key = interrupt(store, {"stage": "a"})
    (store.root / "work" / key / "manifest.json").write_text("{}")
    make(store, {"stage": "a"}, x="1")
    assert (store.open(key) / "x").read_text() == "1"


@pytest.mark.parametrize("key", ["", "../x", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61])
def test_only_digests_are_keys(store: Store, key: str):
    for use in (store.has, store.open, store.identity, store.remove):
        with pytest.raises(StoreError, match="64 lowercase"):
            use(key)
    with pytest.raises(StoreError, match="not the digest"), store.writing(key, {"stage": "a"}):
        pass
    assert not store.root.exists()


def test_key_of_another_identity_is_refused(store: Store):
    with pytest.raises(StoreError, match="not the digest"), store.writing(digest({"stage": "a"}), {"stage": "b"}):
        pass


def test_links_and_own_manifests_are_refused(store: Store):
    identity = {"stage": "a"}
    with pytest.raises(StoreError, match="link"), store.writing(digest(identity), identity) as work:
        (work / "secret").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="keeps that name"), store.writing(digest(identity), identity) as work:
        (work / "manifest.json").write_text("{}")
    with store.writing(digest(identity), identity) as work:
        (work / "checkpoints").mkdir()
        (work / "checkpoints" / "last").symlink_to("epoch3")
    assert store.has(digest(identity))


def test_target_made_meanwhile_is_a_hit(store: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    identity = {"stage": "a"}
    key = make(other, identity, x="theirs")
    with store.writing(key, identity) as work:
        (work / "x").write_text("ours")
        (store.root / "objects").mkdir()
        os.rename(other.open(key), store.root / "objects" / key)
    assert (store.open(key) / "x").read_text() == "theirs"
    assert store.unfinished() == set()


# --- disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_disk_that_fails_the_rename_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch, code: int):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match="disk full" if code == errno.ENOSPC else "Read-only") as caught:
        make(store, {"stage": "a"}, x="1")
    assert "\n" not in str(caught.value)
    assert visible(store.root) == {}


def test_disk_full_in_the_block_is_a_store_error_and_others_pass(store: Store):
    identity = {"stage": "a"}
    with pytest.raises(StoreError, match="disk full"):
        leave(store, identity, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileNotFoundError, match="the stage's own"):
        leave(store, identity, FileNotFoundError("the stage's own"))
    assert visible(store.root).keys() == {f"work/{digest(identity)}/checkpoints/last"}


def test_root_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="cannot use"), store.writing(digest({}), {}):
        pass
    with pytest.raises(StoreError, match="cannot use"):
        store.keys()


def test_hits_need_no_right_to_write(store: Store, monkeypatch: pytest.MonkeyPatch):
    key = make(store, {"stage": "a"}, x="1")
    before = tree(store.root)
    monkeypatch.setattr(Store, "lock", lambda *_: pytest.fail("a hit took the lock"))
    with store.writing(key, {"stage": "a"}) as work:
        assert work is None
    assert tree(store.root) == before


# --- damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model").write_text("weight"), r"model has 6 bytes instead of 7"),
        (lambda folder: (folder / "model").write_text("weightz"), r"model is altered"),
        (lambda folder: (folder / "model").unlink(), r"model is missing"),
        (lambda folder: (folder / "extra").write_text("x"), r"extra is not in the manifest"),
        (lambda folder: (folder / "link").symlink_to("model"), r"link is a link"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"manifest.json is damaged"),
        (
            lambda folder: (folder / "manifest.json").write_text(
                (folder / "manifest.json").read_text().replace("embed", "ember")
            ),
            r"manifest.json is altered",
        ),
    ],
)
def test_damage_is_named_with_the_remedy(store: Store, damage, message: str):
    key = make(store, {"stage": "embed"}, model="weights")
    damage(store.root / "objects" / key)
    with pytest.raises(StoreError, match=message) as caught:
        Store(store.root).open(key)
    assert f"`hallmark-store rm {key}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    store.remove(key)
    make(store, {"stage": "embed"}, model="weights")


def test_files_are_hashed_once_for_a_store(store: Store, monkeypatch: pytest.MonkeyPatch):
    key = make(store, {"stage": "a"}, x="1", y="2")
    calls = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: calls.append(a) or real(*a))
    assert store.open(key) == store.open(key)
    assert len(calls) == 2


# --- processes


def test_killed_process_leaves_its_work_to_the_next(store: Store):
    process = child(HOLD, store.root, "a")
    assert process.stdout.readline() == "writing\n"
    key, identity = digest({"stage": "a"}), {"stage": "a"}
    assert not store.has(key)
    with pytest.raises(LockedError, match="held by another process"), store.lock(key, timeout=0):
        pass
    process.kill()
    process.communicate()
    assert store.unfinished() == {key}
    assert store.keys() == set()
    with store.writing(key, identity, timeout=5) as work:  # the dead process's lock is free
        assert (work / "checkpoints" / "last").read_text() == "epoch 7"
        (work / "half").write_text("whole")
    assert (store.open(key) / "half").read_text() == "whole"
    assert store.unfinished() == set()


def test_racing_processes_make_a_stage_once(store: Store, tmp_path: Path):
    script = """
store, identity = Store(Path(sys.argv[1])), {"stage": "a"}
with store.writing(digest(identity), identity) as work:
    if work is not None:
        with open(sys.argv[2], "a") as log:
            log.write("made\\n")
        time.sleep(0.3)
        (work / "x").write_text("1")
print((store.open(digest(identity)) / "x").read_text())
"""
    processes = [child(script, store.root, tmp_path / "log") for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "1\n"), err
    assert (tmp_path / "log").read_text() == "made\n"


def test_waiting_is_logged_once_and_ends(store: Store, caplog: pytest.LogCaptureFixture):
    key = "a" * 64
    held, done = threading.Event(), threading.Event()

    def holder() -> None:
        with store.lock(key):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=holder)
    thread.start()
    held.wait(10)
    started = time.monotonic()
    with pytest.raises(LockedError, match=key), store.lock(key, timeout=0.3):
        pass
    assert time.monotonic() - started >= 0.3
    assert [record.message for record in caplog.records] == [f"waiting for {key} held by another process"]
    done.set()
    with store.lock(key):
        thread.join()


# --- removal


def test_gc_keeps_what_is_reached_or_held(store: Store):
    kept, lost, held = (make(store, {"stage": name}, x=name * 100) for name in "abc")
    resumable, abandoned = interrupt(store, {"stage": "d"}), interrupt(store, {"stage": "e"})
    size = len(tree(store.root / "objects" / lost)["manifest.json"]) + 100
    before = visible(store.root)
    process = child(
        "with Store(Path(sys.argv[1])).lock(sys.argv[2]): print(flush=True); time.sleep(60)", store.root, held
    )
    process.stdout.readline()
    try:
        expected = sorted([(lost, size), (abandoned, len("epoch 3"))])
        assert store.gc({kept, resumable}, dry_run=True) == expected
        assert visible(store.root) == before
        assert store.gc({kept, resumable}, dry_run=False) == expected
    finally:
        process.kill()
        process.communicate()
    assert store.keys() == {kept, held}
    assert store.unfinished() == {resumable}
    assert store.gc({kept, resumable}, dry_run=False)[0][0] == held
    assert store.gc({kept, resumable}, dry_run=False) == []


def test_gc_drops_work_on_a_stage_that_is_finished(store: Store, tmp_path: Path):
    key = interrupt(store, {"stage": "a"})
    other = Store(tmp_path / "other")
    make(other, {"stage": "a"}, x="1")
    other.export(tmp_path / "parts", part_bytes=10**6)
    assert store.import_(tmp_path / "parts") == [key]
    assert store.gc({key}, dry_run=False) == [(key, len("epoch 3"))]
    assert store.open(key)
    assert store.unfinished() == set()


def test_remove_takes_finished_and_interrupted(store: Store):
    for key in (make(store, {"stage": "a"}, x="1"), interrupt(store, {"stage": "b"})):
        store.remove(key)
        with pytest.raises(StoreError, match="no stage"):
            store.remove(key)
    assert visible(store.root) == {}


def test_leftovers_of_a_killed_import_are_not_taken_in(store: Store, tmp_path: Path):
    key = make(store, {"stage": "a"}, x="1")
    store.export(tmp_path / "parts", part_bytes=10**6)
    other = Store(tmp_path / "other")
    half = other.root / "scratch" / "work" / ("0" * 64)
    half.mkdir(parents=True)
    (half / "last").write_text("ha")
    assert other.import_(tmp_path / "parts") == [key]
    assert visible(other.root) == visible(store.root)


# --- export and import


@pytest.mark.parametrize("part_bytes", [700, 10**7])
def test_export_and_import_are_inverse(store: Store, tmp_path: Path, part_bytes: int):
    keys = {make(store, {"stage": name}, x=name * 3000, empty="") for name in "ab"} | {interrupt(store, {"stage": "c"})}
    parts = store.export(tmp_path / "parts", part_bytes=part_bytes)
    assert [part.name for part in parts] == [f"hallmark-store-{number + 1:04d}.tar" for number in range(len(parts))]
    assert all(part.stat().st_size == part_bytes for part in parts[:-1])
    assert (len(parts) > 10) == (part_bytes == 700)

    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))  # a plain tar, and nothing of this machine in it
    with tarfile.open(fileobj=whole) as tar:
        assert {member.name for member in tar} == visible(store.root).keys()
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}

    other = Store(tmp_path / "other")
    assert other.import_(tmp_path / "parts") == sorted(keys)
    assert visible(other.root) == visible(store.root)
    assert other.import_(tmp_path / "parts") == []
    with other.writing(digest({"stage": "c"}), {"stage": "c"}) as work:
        assert (work / "checkpoints" / "last").read_text() == "epoch 3"
    assert other.import_(tmp_path / "parts") == []
    assert other.unfinished() == set()

    again = other.export(tmp_path / "again", keys=keys - {digest({"stage": "c"})}, part_bytes=part_bytes)
    assert Store(tmp_path / "third").import_(tmp_path / "again") == sorted(keys - {digest({"stage": "c"})})
    assert again[0].read_bytes()[:512] == parts[0].read_bytes()[:512]


def test_existing_stages_and_work_are_kept_as_they_are(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    other = Store(tmp_path / "other")
    key = make(store, {"stage": "a"}, x="ours")
    work = interrupt(store, {"stage": "b"}, "our epoch")
    make(other, {"stage": "a"}, x="theirs")
    interrupt(other, {"stage": "b"}, "their epoch")
    other.export(tmp_path / "parts", part_bytes=10**6)
    before = visible(store.root)
    assert store.import_(tmp_path / "parts") == []
    assert visible(store.root) == before
    messages = " ".join(record.message for record in caplog.records)
    assert f"kept {key}" in messages
    assert f"kept {work}" in messages


def test_export_refuses_damage_strangers_and_used_folders(store: Store, tmp_path: Path):
    key = make(store, {"stage": "a"}, x="1")
    with pytest.raises(StoreError, match="positive"):
        store.export(tmp_path / "parts", part_bytes=0)
    with pytest.raises(StoreError, match=f"no stage {'0' * 64}"):
        store.export(tmp_path / "parts", keys={key, "0" * 64}, part_bytes=100)
    assert not (tmp_path / "parts").exists()
    store.export(tmp_path / "parts", part_bytes=100)
    with pytest.raises(StoreError, match="already holds an export"):
        store.export(tmp_path / "parts", part_bytes=100)
    (store.root / "objects" / key / "x").write_text("2")
    with pytest.raises(StoreError, match="x is altered"):
        Store(store.root).export(tmp_path / "more", part_bytes=100)
    assert not (tmp_path / "more").exists()


def test_export_leaves_out_work_that_is_held(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    key = make(store, {"stage": "a"}, x="1")
    held = interrupt(store, {"stage": "b"})
    process = child(
        "with Store(Path(sys.argv[1])).lock(sys.argv[2]): print(flush=True); time.sleep(60)", store.root, held
    )
    process.stdout.readline()
    try:
        store.export(tmp_path / "parts", part_bytes=10**6)
    finally:
        process.kill()
        process.communicate()
    assert Store(tmp_path / "other").import_(tmp_path / "parts") == [key]
    assert f"left out {held}" in caplog.text


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(folder: Path) -> None:
    index = json.loads((folder / "parts.json").read_text())
    index["parts"][:2] = index["parts"][1::-1]
    (folder / "parts.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _flip(folder / "hallmark-store-0003.tar"), "0003.tar is damaged"),
        (lambda folder: os.truncate(folder / "hallmark-store-0002.tar", 100), "0002.tar has 100 bytes instead of 700"),
        (lambda folder: (folder / "hallmark-store-0002.tar").unlink(), "0002.tar is missing"),
        (lambda folder: (folder / "parts.json").unlink(), "no parts.json"),
        (lambda folder: (folder / "parts.json").write_text("{}"), "parts.json is damaged"),
        (_swap, "do not make the recorded whole"),
    ],
)
def test_damaged_export_is_refused_before_anything_is_unpacked(store: Store, tmp_path: Path, damage, message: str):
    make(store, {"stage": "a"}, x="a" * 3000)
    store.export(tmp_path / "parts", part_bytes=700)
    damage(tmp_path / "parts")
    other = Store(tmp_path / "other")
    with pytest.raises(StoreError, match=message) as caught:
        other.import_(tmp_path / "parts")
    assert "\n" not in str(caught.value)
    assert visible(other.root) == {}
    assert other.keys() == other.unfinished() == set()


def _archive(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """An export of arbitrary members, its digests right."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    folder.mkdir()
    (folder / "hallmark-store-0001.tar").write_bytes(data)
    part = {"name": "hallmark-store-0001.tar", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "parts.json").write_text(json.dumps({"parts": [part], "sha256": part["sha256"]}))


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        _member("../escaped"),
        _member(f"work/{'0' * 64}/../../../../escaped"),
        _member(f"work/{'0' * 64}/.."),
        _member("/tmp/escaped"),
        _member("escaped"),
        _member("objects/short/escaped"),
        _member(f"locks/{'0' * 64}/escaped"),
        _member(f"work/{'0' * 64}/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member(f"work/{'0' * 64}/link", tarfile.LNKTYPE, f"work/{'0' * 64}/good"),
        _member(f"work/{'0' * 64}/pipe", tarfile.FIFOTYPE),
    ],
)
def test_archive_with_foreign_members_is_refused(tmp_path: Path, member: tarfile.TarInfo):
    _archive(tmp_path / "parts", (_member(f"work/{'0' * 64}/good"), b"x"), (member, b""))
    other = Store(tmp_path / "other")
    with pytest.raises(StoreError, match="do not trust"):
        other.import_(tmp_path / "parts")
    assert visible(other.root) == {}
    assert list(tmp_path.rglob("escaped")) == []


def test_archive_with_a_forged_stage_is_refused_whole(store: Store, tmp_path: Path):
    good, bad = make(store, {"stage": "a"}, x="1"), make(store, {"stage": "b"}, x="2")
    members = [
        (_member(f"objects/{key}/{name}"), data) for key in (good, bad) for name, data in tree(store.open(key)).items()
    ]
    forged = [(info, b"3" if info.name == f"objects/{bad}/x" else data) for info, data in members]
    _archive(tmp_path / "parts", *forged)
    other = Store(tmp_path / "other")
    with pytest.raises(StoreError, match="x is altered"):
        other.import_(tmp_path / "parts")
    assert other.keys() == set()


def test_part_names_cannot_leave_the_folder(tmp_path: Path):
    _archive(tmp_path / "parts", (_member(f"work/{'0' * 64}/good"), b"x"))
    os.rename(tmp_path / "parts" / "hallmark-store-0001.tar", tmp_path / "hallmark-store-0001.tar")
    index = tmp_path / "parts" / "parts.json"
    index.write_text(index.read_text().replace("hallmark-store", "../hallmark-store"))
    with pytest.raises(StoreError, match="no part of an export"):
        Store(tmp_path / "other").import_(tmp_path / "parts")


# --- hallmark-store


@pytest.fixture
def command(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("HALLMARK_STORE", str(store.root))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_command_lists_checks_and_removes(store: Store, command):
    key, work = make(store, {"stage": "embed"}, x="1"), interrupt(store, {"stage": "attack"})
    status, out, _ = command("ls")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [[key, "embed"], [work, "unfinished"]]
    assert command("check") == (0, "1 checked, 0 damaged\n", "")
    (store.root / "objects" / key / "x").write_text("2")
    status, out, err = command("check", key)
    assert (status, out) == (2, "1 checked, 1 damaged\n")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert command("rm", key, work) == (0, "", "")
    assert command("ls") == (0, "", "")
    assert command("rm", key)[0] == 2


def test_command_carries_a_store_to_another_folder(store: Store, command, tmp_path: Path):
    key = make(store, {"stage": "embed"}, x="1")
    status, out, _ = command("export", tmp_path / "parts", "--part-mib", 1)
    assert (status, out) == (0, f"{tmp_path / 'parts' / 'hallmark-store-0001.tar'}\n")
    assert command("--store", tmp_path / "other", "import", tmp_path / "parts") == (0, f"{key}\n", "")
    assert command("ls", "--store", tmp_path / "other")[1].startswith(key)


def test_command_gc_keeps_what_the_experiments_reach(store: Store, command, monkeypatch: pytest.MonkeyPatch):
    kept, lost = make(store, {"stage": "a"}, x="1"), make(store, {"stage": "b"}, x="1")
    asked = []
    reach = ModuleType("hallmark.stages.reach")
    reach.reachable_keys = lambda experiments: asked.append(experiments) or {kept}
    monkeypatch.setitem(sys.modules, "hallmark.stages.reach", reach)
    status, out, _ = command("gc", "--dry-run", "experiment=wpe/main,scale=cpu", "experiment=x,seed=0,1,+a=[1,2],~b")
    assert status == 0
    assert lost in out
    assert asked == [[["experiment=wpe/main", "scale=cpu"], ["experiment=x", "seed=0,1", "+a=[1,2]", "~b"]]]
    assert store.keys() == {kept, lost}
    assert command("gc", "experiment=wpe/main")[0] == 0
    assert store.keys() == {kept}


def test_command_errors_are_one_line(store: Store, command, tmp_path: Path):
    status, _, err = command("ls")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: no store at {store.root}")
    key = make(store, {"stage": "a"}, x="1")
    status, _, err = command("gc")
    assert (status, err.count("\n")) == (2, 1)
    assert "gc needs the experiments" in err
    assert store.keys() == {key}
    assert command("import", tmp_path / "nowhere")[0] == 2
    assert issubclass(StoreError, HallmarkError)
