#!/usr/bin/env bash
# Reports which versions of uv.lock have known vulnerabilities. It is a report: what it finds is for
# people to judge, and where the source of such reports cannot be reached it says that.
# usage: scripts/vulnerabilities.sh UV [OPTION OF `uv audit`…]
cd "$(dirname "$0")/.."
found=$(timeout 120 "$1" audit --frozen --preview-features audit-command "${@:2}" 2>/dev/null)
case $? in # of uv: 0: none is known, 1: there are some, else it could not find out
  0) echo "No vulnerability is known of the versions in uv.lock." ;;
  1) echo "Of the versions in uv.lock, vulnerabilities are known:" && echo "$found" ;;
  *) echo "Nobody could be asked for vulnerabilities of the versions in uv.lock: nothing is known." ;;
esac
