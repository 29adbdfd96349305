#!/usr/bin/env bash
# Installs the engines that the tests run containers on: Flink, Spark, a Kubernetes API, and the
# job that they run. What is there already stays.
#   tests/engines/install.sh [FOLDER]   (.dagster-amoro/engines)
# PYTHON says which Python has pip; a job's jar is built with javac, Kubernetes comes with npm.
set -euo pipefail

FLINK=1.20.5
SPARK=3.5.9
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
FOLDER=${1:-$HERE/../../.dagster-amoro/engines}

fail() {
  echo "tests/engines/install.sh: $1" >&2
  exit 1
}

require() { # COMMAND DEBIAN-PACKAGE
  command -v "$1" >/dev/null || fail "there is no $1 on PATH (Debian: apt-get install $2)"
}

download() { # REQUIREMENT [OPTION…]
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$WORK" "$@"
}

# Into one folder, which appears only when it is complete.
install_flink() {
  echo "Installing Flink $FLINK …"
  # bin and conf are the same in the wheels for all Pythons
  download "apache-flink==$FLINK" --only-binary=:all: --implementation cp \
    --python-version 3.11 --abi cp311 --platform manylinux2014_x86_64
  download "apache-flink-libraries==$FLINK" --no-binary=apache-flink-libraries
  mkdir "$WORK/flink"
  tar -xzf "$WORK/apache_flink_libraries-$FLINK.tar.gz" -C "$WORK/flink" --strip-components=2 \
    "apache_flink_libraries-$FLINK/deps/"{bin,lib,opt,plugins}
  "$PYTHON" -m zipfile -e "$WORK"/apache_flink-"$FLINK"-*.whl "$WORK/wheel"
  cp -r "$WORK"/wheel/pyflink/{bin,conf} "$WORK/flink"
  chmod +x "$WORK"/flink/bin/*.sh "$WORK/flink/bin/flink"
  rm -rf flink
  mv "$WORK/flink" flink
}

install_spark() {
  echo "Installing Spark $SPARK …"
  download "pyspark==$SPARK" --no-binary=pyspark
  mkdir "$WORK/spark"
  tar -xzf "$WORK/pyspark-$SPARK.tar.gz" -C "$WORK/spark" --strip-components=2 \
    "pyspark-$SPARK/deps/"{bin,jars,sbin}
  rm -rf spark
  mv "$WORK/spark" spark
}

install_kubernetes() {
  echo "Installing the Kubernetes API …"
  mkdir -p kubernetes
  cp "$HERE"/kubernetes/package{,-lock}.json kubernetes
  npm ci --prefix kubernetes --silent --no-audit --no-fund
}

build_job() {
  echo "Building the optimizer job …"
  mapfile -t sources < <(find "$HERE/optimizer" -name '*.java')
  javac --release 11 -d "$WORK/classes" \
    -cp "flink/lib/flink-dist-$FLINK.jar:spark/jars/*" "${sources[@]}"
  jar --create --file "$WORK/job.jar" -C "$WORK/classes" .
  mv "$WORK/job.jar" optimizer-job.jar
}

is_older_than_its_sources() {
  [ ! -e optimizer-job.jar ] ||
    [ -n "$(find "$HERE/optimizer" -newer optimizer-job.jar -name '*.java')" ]
}

require java openjdk-17-jdk-headless
require javac openjdk-17-jdk-headless
require npm npm
[ "$(javac -version 2>&1 | sed 's/^javac \([0-9]*\).*/\1/')" -ge 11 ] ||
  fail "Java 11 or newer is needed, not $(javac -version 2>&1)"
"$PYTHON" -m pip --version >/dev/null 2>&1 || fail "$PYTHON has no pip (PYTHON chooses another)"
PYTHON=$("$PYTHON" -c 'import sys; print(sys.executable)') # absolute

mkdir -p "$FOLDER"
cd "$FOLDER"
WORK=$(mktemp -d "$PWD/installing.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

[ -e "flink/lib/flink-dist-$FLINK.jar" ] || install_flink
[ -e "spark/jars/spark-core_2.12-$SPARK.jar" ] || install_spark
cmp -s "$HERE/kubernetes/package-lock.json" kubernetes/package-lock.json &&
  [ -e kubernetes/node_modules/.package-lock.json ] || install_kubernetes
! is_older_than_its_sources || build_job
echo "The engines are in $PWD"
