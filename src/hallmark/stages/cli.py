"""``hallmark-store``: look into the store, check it, clear it, and carry it to another machine."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hallmark.errors import HallmarkError, StoreError
from hallmark.stages.store import Store

_MIB = 1 << 20
# A comma parts two overrides only where the next one begins, so that `seed=0,1` and `layers=[a,b]` stay whole.
_NEXT_OVERRIDE = re.compile(r",(?=~|\+{0,2}[\w./@:-]+=)")


def _list(store: Store, _: argparse.Namespace) -> int:
    for key in sorted(store.keys()):
        manifest = store.manifest(key)
        stage = manifest.identity.get("stage", "-")
        print(f"{key}  {stage:<10}  {manifest.bytes / _MIB:10.1f} MiB  {manifest.seconds:8.0f} s")
    for key in sorted(store.unfinished()):
        print(f"{key}  unfinished")
    return 0


def _check(store: Store, arguments: argparse.Namespace) -> int:
    keys = arguments.keys or sorted(store.keys())
    damaged = 0
    for key in keys:
        try:
            store.open(key)
        except StoreError as error:
            print(f"error: {error}", file=sys.stderr)
            damaged += 1
    print(f"{len(keys)} checked, {damaged} damaged")
    return 2 if damaged else 0


def _remove(store: Store, arguments: argparse.Namespace) -> int:
    for key in arguments.keys:
        store.remove(key)
    return 0


def _gc(store: Store, arguments: argparse.Namespace) -> int:
    if not arguments.experiments:
        raise StoreError("gc needs the experiments whose stages stay, such as experiment=wpe/main,scale=cpu")
    from hallmark.stages.reach import reachable_keys  # composing configurations is the slow part; only gc needs it

    keep = reachable_keys([_NEXT_OVERRIDE.split(experiment) for experiment in arguments.experiments])
    removed = store.gc(keep, dry_run=arguments.dry_run)
    for key, size in removed:
        print(f"{key}  {size / _MIB:10.1f} MiB")
    verb = "would free" if arguments.dry_run else "freed"
    print(f"{verb} {sum(size for _, size in removed) / _MIB:.1f} MiB from {len(removed)} stages")
    return 0


def _export(store: Store, arguments: argparse.Namespace) -> int:
    keys = set(arguments.keys) or None
    for part in store.export(arguments.destination, keys=keys, part_bytes=arguments.part_mib * _MIB):
        print(part)
    return 0


def _import(store: Store, arguments: argparse.Namespace) -> int:
    for key in store.import_(arguments.source):
        print(key)
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--store", type=Path, help="the store's folder (default: $HALLMARK_STORE, else ./store)")
    parser = argparse.ArgumentParser(prog="hallmark-store", description=__doc__, parents=[common])
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("ls", parents=[common], help="list all stages").set_defaults(run=_list)

    check = commands.add_parser("check", parents=[common], help="compare every file with its recorded digest")
    check.add_argument("keys", nargs="*", metavar="KEY", help="stages to check (default: all)")
    check.set_defaults(run=_check)

    remove = commands.add_parser("rm", parents=[common], help="delete stages")
    remove.add_argument("keys", nargs="+", metavar="KEY")
    remove.set_defaults(run=_remove)

    gc = commands.add_parser("gc", parents=[common], help="delete every stage that no given experiment reaches")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    gc.add_argument("experiments", nargs="*", metavar="OVERRIDES", help="such as experiment=wpe/main,scale=cpu")
    gc.set_defaults(run=_gc)

    export = commands.add_parser("export", parents=[common], help="write stages into archive parts")
    export.add_argument("destination", type=Path)
    export.add_argument("keys", nargs="*", metavar="KEY", help="stages to export (default: all, and interrupted work)")
    export.add_argument("--part-mib", type=int, default=1024, help="size of a part in MiB (default: %(default)s)")
    export.set_defaults(run=_export)

    take = commands.add_parser("import", parents=[common], help="take in the stages of an export")
    take.add_argument("source", type=Path)
    take.set_defaults(run=_import)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hallmark-store``.

    Args:
        argv: Arguments after the program's name; ``None`` takes the process's own.

    Returns:
        Exit status: 0, or 2 after an error that was printed as one line.
    """
    arguments = _parser().parse_args(argv)
    root = vars(arguments).get("store") or Path(os.environ.get("HALLMARK_STORE") or "store")
    try:
        if arguments.run is not _import and not root.is_dir():
            raise StoreError(f"no store at {root}; name it with --store or HALLMARK_STORE")
        return int(arguments.run(Store(root), arguments))
    except HallmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
