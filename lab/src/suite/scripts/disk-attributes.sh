want serial "$(cat /sys/block/vda/serial)" treaty-1
want sectors "$(cat /sys/block/vda/size)" 16384
want read-only "$(cat /sys/block/vdb/ro)" 1
want text "$(head -c 5 /dev/vdb)" hello
if dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null; then
    fail 'a read-only disk was written'
fi
