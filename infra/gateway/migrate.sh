#!/bin/sh
# The catalog's schema, what its users may do, and an operator's key in the file $1 for whoever scrapes the gateway. Safe to repeat.
set -eu
cartridge catalog upgrade
cartridge catalog roles --apply
test -s "$1" || cartridge key create prometheus --operator --to "$1"
# Prometheus runs as another user. The volume is mounted nowhere else.
chmod 0644 "$1"
