want processors "$(nproc)" 1
total=$(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
[ "$total" -gt 180000 ] && [ "$total" -lt 262144 ] || fail "memory is $total KiB"
