# The kernel takes the device as its source; two pieces differ, and neither compresses.
current=$(cat /sys/class/misc/hw_random/rng_current)
case $current in
virtio_rng*) ;;
*) fail "the source is '$current'" ;;
esac
for piece in a b; do
    dd if=/dev/hwrng of=/tmp/$piece bs=1k count=64 iflag=fullblock 2>/dev/null || fail read
    want size "$(wc -c </tmp/$piece)" 65536
    packed=$(gzip -c /tmp/$piece | wc -c)
    [ "$packed" -gt 65536 ] || fail "65536 bytes compress to $packed"
done
[ "$(sum /tmp/a)" != "$(sum /tmp/b)" ] || fail 'the same bytes twice'
