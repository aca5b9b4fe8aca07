"""Programs that tests of the lab need, and the Debian packages that bring them."""

from __future__ import annotations

import shutil
from typing import Final

import pytest

PACKAGES: Final = {
    "conntrack": "conntrack",
    "dig": "bind9-dnsutils",
    "iptables-restore": "iptables",
    "nft": "nftables",
    "nginx": "nginx-light",
    "prometheus": "prometheus",
    "setpriv": "util-linux",
    "unbound": "unbound",
}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips tests where a program is missing, and says which package has it."""
    missing = [PACKAGES[program] for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"needs the packages {', '.join(missing)}")
