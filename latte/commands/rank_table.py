"""Make a rank table, which tells the Ascend devices of one or more machines each other's addresses.

Run the first command on each machine and, if there are several machines, then the second one once:

    python tools/make_rank_table.py --devices 0-7 --target this.json
    python tools/make_rank_table.py --merge first.json second.json --target all.json

With --select 0-3, --merge keeps only these devices of each machine, and numbers their ranks anew.
The addresses of the devices come from /etc/hccn.conf or hccn_tool, unless --device_ips gives them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from latte.config.parser import Options, option, parse_config
from latte.errors import UserError, reason
from latte.io.atomic import atomic_path
from latte.runtime.ranks import own_address

if TYPE_CHECKING:
    from collections.abc import Sequence

HCCN = Path("/etc/hccn.conf")
NUMBER = r"[0-9]{1,5}"  # of a device or a rank
LARGEST = 2**24  # bytes of a table; one of a thousand devices has 100 kB


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Rank table"""

    devices: str = option("0-7", "devices of this machine, such as 0-7 or 0,2,3")
    device_ips: str | None = option(
        None, "IP addresses of the devices, separated by commas; null = the addresses that the driver knows"
    )
    server_id: str | None = option(None, "IP address of this machine; null = the one by which other machines reach it")
    merge: list[str] | None = option(None, "tables of single machines to merge, in the order of their ranks")
    select: str | None = option(None, "devices of each merged machine to keep, such as 0-3; null = all")
    target: str | None = option(None, "file to write")
    show: str | None = option(None, "table to show: one line `device rank ranks` per device of this machine")


def main(argv: Sequence[str] | None = None) -> None:
    """Make, merge or show a rank table."""
    options = parse_config(Settings, argv, __doc__)
    if options.show:
        for line in local_ranks(read_table(options.show), options.server_id, options.show):
            print(*line)
        return
    if not options.target:
        raise UserError("--target is not given; name the file to write")
    if options.merge:
        servers = [server for path in options.merge for server in read_table(path)["server_list"]]
        if options.select:
            servers = [selected(server, parse_devices(options.select, "select")) for server in servers]
    else:
        servers = [this_server(parse_devices(options.devices), options.device_ips, options.server_id)]
    table = numbered(servers)
    with atomic_path(options.target) as temporary:
        temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"{options.target}: {table['server_count']} servers, {sum(len(s['device']) for s in servers)} ranks")


def parse_devices(text: str, name: str = "devices") -> list[int]:
    """Return the device numbers of a text such as `0-7` or `0,2,3`; raises UserError for other texts."""
    if match := re.fullmatch(f"({NUMBER})-({NUMBER})", text):
        numbers = list(range(int(match[1]), int(match[2]) + 1))
    else:
        numbers = [int(part) for part in text.split(",")] if re.fullmatch(f"{NUMBER}(,{NUMBER})*", text) else []
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"--{name} is {text!r}, but must be like 0-7 or 0,2,3")
    return numbers


def selected(server: dict[str, Any], devices: list[int]) -> dict[str, Any]:
    """Return the entry of a machine with some of its devices; raises UserError if it lacks one."""
    kept = [device for device in server["device"] if int(device["device_id"]) in devices]
    if len(kept) < len(devices):
        there = ", ".join(device["device_id"] for device in server["device"])
        raise UserError(f"the server {server['server_id']} has the devices {there}, not all of {devices}; name others")
    return server | {"device": kept}


def this_server(devices: list[int], device_ips: str | None, server_id: str | None) -> dict[str, Any]:
    """Return the entry of this machine; raises UserError if an address is missing or invalid."""
    if device_ips:
        given = device_ips.split(",")
        if len(given) != len(devices):
            raise UserError(
                f"--device_ips gives {len(given)} addresses for {len(devices)} devices; give one per device"
            )
        addresses = dict(zip(devices, given, strict=True))
    else:
        addresses = driver_addresses(devices)
    if missing := [device for device in devices if device not in addresses]:
        raise UserError(f"device {missing[0]} has no address; set it with hccn_tool, or give --device_ips")
    server_id = server_id or own_address()
    for address in (server_id, *(addresses[device] for device in devices)):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise UserError(f"{address!r} is not an IP address; correct --device_ips or --server_id") from None
    entries = [{"device_id": str(device), "device_ip": addresses[device]} for device in devices]
    return {"server_id": server_id, "device": entries, "host_nic_ip": "reserve"}


def driver_addresses(devices: list[int]) -> dict[int, str]:
    """Return the IP addresses of the devices that have one; raises UserError if this machine has no Ascend driver."""
    if HCCN.exists():
        found = re.findall(r"^address_(\d+)=(\S+)", HCCN.read_text(encoding="utf-8"), re.MULTILINE)
        return {int(number): address for number, address in found}
    tool = shutil.which("hccn_tool")
    if not tool:
        raise UserError(f"there is neither {HCCN} nor hccn_tool; install the Ascend driver, or give --device_ips")
    addresses = {}
    for device in devices:
        said = subprocess.run([tool, "-i", str(device), "-ip", "-g"], capture_output=True, text=True, check=False)
        if match := re.search(r"ipaddr:\s*(\S+)", said.stdout):
            addresses[device] = match[1]
    return addresses


def numbered(servers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the table of servers and number their devices by rank; raises UserError if a server appears twice."""
    names = [server["server_id"] for server in servers]
    if len(set(names)) < len(names):
        raise UserError(
            f"the server {max(names, key=names.count)} is in two tables; make each with its own --server_id"
        )
    devices = [device for server in servers for device in server["device"]]
    for rank, device in enumerate(devices):
        device["rank_id"] = str(rank)
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}


def read_table(path: str) -> dict[str, Any]:
    """Read a rank table from a JSON file, with its numbers as texts without leading zeros.

    Raises UserError if it is missing or malformed, or a server, a device of one or a rank stands in it twice.
    """
    try:
        if not Path(path).is_file():
            raise UserError(f"there is no rank table {path}; tools/make_rank_table.py makes one")
        if Path(path).stat().st_size > LARGEST:
            raise UserError(f"{path} is too large for a rank table; tools/make_rank_table.py makes one")
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        for server in table["server_list"]:
            _check_server(server)
        servers = [server["server_id"] for server in table["server_list"]]
        ranks = [int(device["rank_id"]) for server in table["server_list"] for device in server["device"]]
    except OSError as error:
        raise UserError(f"cannot read the rank table {path}: {reason(error)}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a rank table (version 1.0): {error!r:.200}; tools/make_rank_table.py makes one"
        ) from None
    if twice := _twice(servers):
        raise UserError(f"{path}: the server {twice} stands in it twice; make the table again")
    if sorted(ranks) != list(range(len(ranks))) or not ranks:
        raise UserError(f"{path}: the ranks are not 0 to {len(ranks) - 1}, each once; make the table again")
    return table


def _check_server(server: dict[str, Any]) -> None:
    """Give the numbers of a machine's entry one form; raises ValueError or what a malformed entry raises."""
    if not isinstance(server["server_id"], str) or not server["server_id"].isprintable():
        raise ValueError(f"server_id is {server['server_id']!r:.40}, but must be a text")
    for device in server["device"]:
        for key in ("device_id", "rank_id"):
            value = device[key]
            number = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
            if not re.fullmatch(NUMBER, number):
                raise ValueError(f"{key} is {value!r:.40}, but must be a number from 0 on")
            device[key] = str(int(number))
    if twice := _twice([device["device_id"] for device in server["device"]]):
        raise ValueError(f"device {twice} of {server['server_id']} stands in it twice")


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def local_ranks(table: dict[str, Any], server_id: str | None, path: str) -> list[tuple[str, str, int]]:
    """Return (device, rank, number of ranks) of this machine's devices; raises UserError if it is not in the table."""
    servers = table["server_list"]
    own = {server_id} if server_id else addresses_of_host()
    mine = [server for server in servers if server["server_id"] in own]
    if len(servers) == 1 and not server_id:
        mine = servers
    if len(mine) != 1:
        names = ", ".join(server["server_id"] for server in servers)
        raise UserError(f"{path} has the servers {names}, none of which is {', '.join(sorted(own))}; set SERVER_ID")
    total = sum(len(server["device"]) for server in servers)
    return [(device["device_id"], device["rank_id"], total) for device in mine[0]["device"]]


def addresses_of_host() -> set[str]:
    """Return the name and the IP addresses of this machine."""
    name = socket.gethostname()
    found = {name, own_address()}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, family)}
        except OSError:
            continue
    for addresses in psutil.net_if_addrs().values():
        found |= {address.address for address in addresses if address.family in (socket.AF_INET, socket.AF_INET6)}
    return found
