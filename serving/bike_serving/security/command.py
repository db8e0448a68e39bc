"""`bike-serving keys`: make, list and revoke API keys.

Belongs here: the command line around `bike_serving.security.keys`. Does not belong here: serving.
"""

import argparse
import os
import sys

from bike_serving.security.access import Meter, Role
from bike_serving.security.keys import create_key, read_keys, revoke_key
from bike_serving.settings import Settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bike-serving keys",
        description="API keys of the service; running ones follow within two seconds.",
    )
    parser.add_argument("--home", help="the platform's home")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it: the only time that it is shown")
    create.add_argument("--name", required=True, help="who it is for")
    create.add_argument("--role", choices=[role.value for role in Role], default=Role.READER.value)
    create.add_argument("--predict-per-minute", type=_limit, help="its own limit; 0 for none")
    create.add_argument("--train-per-hour", type=_limit, help="its own limit; 0 for none")
    commands.add_parser("list", help="ids, names, roles and limits; no key can be shown again")
    revoke = commands.add_parser("revoke", help="make a key worthless")
    revoke.add_argument("id")
    return parser


def _limit(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 10**6:
        raise argparse.ArgumentTypeError("give a number from 0 to 1,000,000")
    return value


def main(arguments: list[str]) -> None:
    """Run the command.

    Raises:
        KeyFileError: the file of keys cannot be used, or there is no such key.
    """
    options = _parser().parse_args(arguments)
    path = (Settings(home=options.home) if options.home else Settings()).keys_path
    if options.command == "create":
        given = {Meter.PREDICT: options.predict_per_minute, Meter.TRAIN: options.train_per_hour}
        limits = {meter: limit for meter, limit in given.items() if limit is not None}
        key_id, key = create_key(path, options.name, Role(options.role), limits)
        sys.stdout.write(f"{key}\n")
        sys.stderr.write(
            f"key {key_id}, role {options.role}, kept as a hash in {path}; it is not shown again\n"
        )
    elif options.command == "list":
        for entry in read_keys(path).values():
            limits_text = " ".join(f"{meter}={limit}" for meter, limit in entry.limits.items()) or "-"
            sys.stdout.write(
                "\t".join((entry.id, entry.role, entry.created_at, limits_text, entry.name)) + os.linesep
            )
    else:
        revoke_key(path, options.id)
        sys.stderr.write(f"key {options.id} is revoked\n")
