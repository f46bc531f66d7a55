# Writes and reads back until the host says that it has paused the machine often enough.
echo 'load begins'
round=0
while [ "$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 4)" != stop ]; do
    dd if=/dev/urandom of=/tmp/piece bs=64k count=16 2>/dev/null
    dd if=/tmp/piece of=/dev/vda bs=64k oflag=direct 2>/dev/null || fail "write in round $round"
    dd if=/dev/vda of=/tmp/back bs=64k count=16 iflag=direct 2>/dev/null || fail "read in round $round"
    cmp /tmp/piece /tmp/back || fail "round $round read what it did not write"
    round=$((round + 1))
done
put sum <<END
$(sum /tmp/piece)
END
echo "load ends after $round rounds"
