#!/bin/sh
# Prints the path of a Chromium: that of the PATH, else Debian's, which it downloads into .chromium/ together with the
# libraries and fonts that this machine lacks. It needs no root. Where that is impossible it prints one line and ends with 1.
set -eu
if command -v chromium; then exit 0; fi
here=$(cd "$(dirname "$0")/../.." && pwd)/.chromium
if [ -x "$here/chromium" ]; then echo "$here/chromium"; exit 0; fi
mkdir -p "$here/lists/partial" "$here/cache/archives/partial" "$here/debs" "$here/system"

fail() {
  echo "no Chromium, so browser tests are skipped: $1 (see $here/log); install chromium, or set MEDLT_BROWSER" >&2
  exit 1
}

# lists and cache of its own: those of the system belong to root, and are empty in a container
apt() {
  apt-get -qq -o Dir::State::Lists="$here/lists" -o Dir::Cache="$here/cache" -o Debug::NoLocking=true \
    -o APT::Sandbox::User="$(id -un)" -o APT::Update::Error-Mode=any \
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@" 2>> "$here/log"
}

command -v apt-get > /dev/null 2> "$here/log" && command -v dpkg > /dev/null || fail 'this system has no apt'
apt update > /dev/null || fail 'apt does not reach its servers'
# a third field in brackets is the version that is installed: such a package is there
packages=$(apt --simulate --no-install-recommends install chromium | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }')
[ -n "$packages" ] || fail 'apt has no package chromium'
(cd "$here/debs" && apt download $packages) > /dev/null || fail 'the packages were not downloaded'
for deb in "$here"/debs/*.deb; do dpkg -x "$deb" "$here/system"; done
rm -rf "$here/debs" "$here/lists" "$here/cache"

cat > "$here/fonts.conf" << END
<fontconfig><dir>/usr/share/fonts</dir><dir>$here/system/usr/share/fonts</dir><cachedir>$here/fonts</cachedir></fontconfig>
END
cat > "$here/chromium.new" << END
#!/bin/sh
export LD_LIBRARY_PATH=$(find "$here/system" -name '*.so*' -exec dirname {} + | sort -u | paste -sd:)
export FONTCONFIG_FILE=$here/fonts.conf
exec $here/system/usr/lib/chromium/chromium "\$@"
END
chmod +x "$here/chromium.new"
"$here/chromium.new" --version > /dev/null 2>> "$here/log" || fail 'it does not start'
mv "$here/chromium.new" "$here/chromium" # renamed last: an interrupted download is begun again
echo "$here/chromium"
