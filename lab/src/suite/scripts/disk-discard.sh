dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null || fail write
blkdiscard /dev/vda || fail discard
want 'bytes that are not zero' "$(head -c 1048576 /dev/vda | tr -d '\0' | wc -c)" 0
