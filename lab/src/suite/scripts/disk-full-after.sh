set -- $(tr -d '\r' <"$CONSOLE" | grep '^written ')
[ $# = 3 ] || fail "the guest said '$*'"
start() { head -c 6291456 "$1" | md5sum | cut -d' ' -f1; }
want 'what is in the raw image' "$(start small/vda)" "$2"
"$LAB_TREATY" img check -q -f qcow2 small/vdb || fail 'the image is damaged'
"$LAB_TREATY" img convert -f qcow2 -O raw small/vdb flat
want 'what is in the qcow2 image' "$(start flat)" "$3"
umount small
