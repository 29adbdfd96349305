"""An installation of Amoro, as far as local optimizers need one: its script, its folders, a Java.

`optimizer.sh` does what that of Amoro 0.9 does: Java is that of JAVA_HOME if that is a folder, and
otherwise of PATH; AMORO_CONF_DIR and AMORO_LOG_DIR are taken as they are inherited, and
`env.sh` and the log configuration come from the first of them; arguments are split once more; the
error output of the optimizer goes to `optimizer.log.err`, which is emptied before.
"""

import sys
from pathlib import Path
from typing import Final

_SCRIPT: Final = """#!/bin/bash
if [ -d "$JAVA_HOME" ]; then JAVA=$JAVA_HOME/bin/java; else JAVA=java; fi
export AMORO_HOME="$(cd "$(dirname "$0")/.." && pwd -P)"
export AMORO_LOG_DIR="${AMORO_LOG_DIR:-$AMORO_HOME/logs}"
export AMORO_CONF_DIR="${AMORO_CONF_DIR:-$AMORO_HOME/conf}"
[ -f "$AMORO_CONF_DIR/env.sh" ] && . "$AMORO_CONF_DIR/env.sh"
LOGS="$AMORO_LOG_DIR/${OPTIMIZER_LOG_DIR_NAME:-optimizer-$(date +%s)}"
[ "$1" = start ] || exit 64
mkdir -p "$LOGS"
ARGUMENTS=${@:3}
nohup $JAVA "-Xmx$2m" "-Dlog4j.configurationFile=$AMORO_CONF_DIR/optimize/log4j2.xml" \\
  "-Dlog.home=$LOGS" org.apache.amoro.optimizer.standalone.StandaloneOptimizer $ARGUMENTS \\
  > /dev/null 2> "$LOGS/optimizer.log.err" &
echo "Amoro Optimizer started in background with PID $!"
"""
_JAVA: Final = """#!/bin/sh
exec "{python}" "{program}" "$@"
"""


def install(home: Path, program: str) -> Path:
    """An Amoro home, with a Java in its folder `jdk` that runs a program in Python.

    The program gets what Java would get. It keeps a log if there is a configuration for it.
    """
    for folder in ("bin", "conf/optimize", "jdk/bin"):
        (home / folder).mkdir(parents=True)
    (home / "conf/optimize/log4j2.xml").touch()
    (home / "optimizer.py").write_text(program)
    java = _JAVA.format(python=sys.executable, program=home / "optimizer.py")
    for name, text in (("bin/optimizer.sh", _SCRIPT), ("jdk/bin/java", java)):
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    return home
