"""Devices, links and clusters, read from TOML profiles in which every number names its source."""

from costmodel.hardware.cluster import Cluster, parse_cluster
from costmodel.hardware.profile import Device, Host, Kernel, Link, Profile, load_profile, profiles
from costmodel.hardware.quantity import Quantity

__all__ = [
    "Cluster",
    "Device",
    "Host",
    "Kernel",
    "Link",
    "Profile",
    "Quantity",
    "load_profile",
    "parse_cluster",
    "profiles",
]
