# Writes more than the host has room for: nothing fails, it only takes until there is room.
for disk in vda vdb; do
    (
        dd if=/dev/urandom of=/tmp/data-$disk bs=64k count=96 2>/dev/null
        dd if=/tmp/data-$disk of=/dev/$disk bs=64k oflag=direct 2>/dev/null || fail "write to $disk"
        dd if=/dev/$disk of=/tmp/back-$disk bs=64k count=96 iflag=direct 2>/dev/null || fail "read of $disk"
        cmp /tmp/data-$disk /tmp/back-$disk || fail "$disk read what was not written"
        touch /tmp/done-$disk
    ) &
done
wait
[ -e /tmp/done-vda ] && [ -e /tmp/done-vdb ] || fail 'not all was written'
dmesg | grep -i 'I/O error' && fail 'the guest saw an error'
echo "written $(sum /tmp/data-vda) $(sum /tmp/data-vdb)"
